"""Tiny models with random weights, written as real checkpoints, and what is asked of them.

Needs torch and safetensors; the reference needs `transformers`.
"""

from __future__ import annotations

import functools
import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from runtime.backends.torch_engine.linear import Precision
from runtime.backends.torch_engine.model import Model
from runtime.backends.torch_engine.weights import SafetensorsSource, read_config

VOCAB = 160
FAMILIES = ("llama", "llama3", "qwen2", "qwen3", "qwen3moe")
ANSWER_TOKENS = 10


@dataclass(frozen=True)
class Tiny:
    """A checkpoint, this engine's model of it on the CPU, prompts, and the right greedy answers."""

    family: str
    directory: Path
    model: Model
    prompts: list[list[int]]
    answers: list[list[int]]


def _config(family: str, n_layers: int) -> dict[str, Any]:
    """What `config.json` of the family says."""
    architecture = {"llama3": "Llama", "qwen3moe": "Qwen3Moe"}.get(family, family.capitalize())
    config: dict[str, Any] = {
        "architectures": [f"{architecture}ForCausalLM"],
        "model_type": {"llama3": "llama", "qwen3moe": "qwen3_moe"}.get(family, family),
        "vocab_size": VOCAB,
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": n_layers,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 16 if family.startswith("qwen3") else 8,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 512,
        "tie_word_embeddings": family != "qwen2",
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "eos_token_id": None,
    }
    if family == "llama3":
        config["attention_bias"] = True
        config["rope_parameters"] = {
            "rope_type": "llama3",
            "rope_theta": 10000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        }
    if family == "qwen3moe":
        config |= {
            "moe_intermediate_size": 24,
            "num_experts": 8,
            "num_experts_per_tok": 2,
            "norm_topk_prob": True,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
        }
    return config


def _tensors(family: str, config: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Random weights, large enough for answers that do not repeat one token."""
    generator = torch.Generator().manual_seed(7)

    def matrix(*sizes: int) -> torch.Tensor:
        return 0.3 * torch.randn(sizes, generator=generator)

    def norm(size: int) -> torch.Tensor:
        return 1 + 0.2 * torch.randn(size, generator=generator)

    d, dim = config["hidden_size"], config["head_dim"]
    nq, nk = config["num_attention_heads"] * dim, config["num_key_value_heads"] * dim
    tensors = {"model.embed_tokens.weight": matrix(VOCAB, d), "model.norm.weight": norm(d)}
    if not config["tie_word_embeddings"]:
        tensors["lm_head.weight"] = matrix(VOCAB, d)
    biased = {"qwen2": "qkv", "llama3": "qkvo"}.get(family, "")
    for layer in range(config["num_hidden_layers"]):
        p = f"model.layers.{layer}."
        tensors[p + "input_layernorm.weight"] = norm(d)
        tensors[p + "post_attention_layernorm.weight"] = norm(d)
        for name, rows, columns in (("q", nq, d), ("k", nk, d), ("v", nk, d), ("o", d, nq)):
            tensors[f"{p}self_attn.{name}_proj.weight"] = matrix(rows, columns)
            if name in biased:
                tensors[f"{p}self_attn.{name}_proj.bias"] = matrix(rows)
        if family.startswith("qwen3"):
            tensors[p + "self_attn.q_norm.weight"] = norm(dim)
            tensors[p + "self_attn.k_norm.weight"] = norm(dim)
        blocks, ff = [p + "mlp."], config["intermediate_size"]
        if family == "qwen3moe":
            ff = config["moe_intermediate_size"]
            tensors[p + "mlp.gate.weight"] = matrix(config["num_experts"], d)
            blocks = [f"{p}mlp.experts.{e}." for e in range(config["num_experts"])]
        for block in blocks:
            tensors[block + "gate_proj.weight"] = matrix(ff, d)
            tensors[block + "up_proj.weight"] = matrix(ff, d)
            tensors[block + "down_proj.weight"] = matrix(d, ff)
    return tensors


def save(family: str, directory: Path, n_layers: int = 3) -> Path:
    """Write a checkpoint of `family` into `directory`, as a model hub would have it."""
    config = _config(family, n_layers)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config), "utf-8")
    save_file(_tensors(family, config), directory / "model.safetensors", {"format": "pt"})
    return directory


def reference(directory: Path) -> Any:
    """`transformers`' model of a checkpoint, in float32."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()


def load(directory: Path, precision: Precision = "float32", **options: Any) -> Model:
    return Model(read_config(directory), SafetensorsSource(directory), precision, **options)


def greedy(model: Any, ids: list[int], n: int) -> list[int]:
    """Greedy tokens of the `transformers` reference, without a cache."""
    out = list(ids)
    with torch.inference_mode():
        for _ in range(n):
            logits = model(torch.tensor([out])).logits[0, -1]
            out.append(int(logits.argmax()))
    return out[len(ids) :]


@functools.lru_cache(maxsize=4)
def prompts(n: int = 12, seed: int = 3, longest: int = 60) -> list[list[int]]:
    """Prompts of several lengths, some of which share a beginning."""
    rng = random.Random(seed)
    stems = [[rng.randrange(VOCAB) for _ in range(rng.randrange(5, longest))] for _ in range(3)]
    made: list[list[int]] = []
    for i in range(n):
        stem = stems[i % 3] if i % 4 else []
        made.append(stem + [rng.randrange(VOCAB) for _ in range(rng.randrange(1, 25))])
    return made
