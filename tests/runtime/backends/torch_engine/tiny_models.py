"""Tiny models with random weights, written as real checkpoints."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch

from runtime.backends.torch_engine.linear import Precision
from runtime.backends.torch_engine.model import Model
from runtime.backends.torch_engine.weights import SafetensorsSource, read_config

VOCAB = 160
FAMILIES = ("llama", "llama3", "qwen2", "qwen3", "qwen3moe")


def reference(family: str, n_layers: int = 3) -> Any:
    """A `transformers` model of `family`, in float32. Weights are large enough for answers that
    do not repeat one token."""
    import transformers

    common: dict[str, Any] = {
        "vocab_size": VOCAB,
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": n_layers,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "initializer_range": 0.3,
        "tie_word_embeddings": family != "qwen2",
    }
    torch.manual_seed(7)
    if family == "llama":
        config = transformers.LlamaConfig(**common)
        model = transformers.LlamaForCausalLM(config)
    elif family == "llama3":
        rope = {
            "rope_type": "llama3",
            "rope_theta": 10000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        }
        config = transformers.LlamaConfig(**common, rope_parameters=rope, attention_bias=True)
        model = transformers.LlamaForCausalLM(config)
    elif family == "qwen2":
        config = transformers.Qwen2Config(**common)
        model = transformers.Qwen2ForCausalLM(config)
    elif family == "qwen3":
        config = transformers.Qwen3Config(**common, head_dim=16)
        model = transformers.Qwen3ForCausalLM(config)
    else:
        config = transformers.Qwen3MoeConfig(
            **common,
            head_dim=16,
            moe_intermediate_size=24,
            num_experts=8,
            num_experts_per_tok=2,
            norm_topk_prob=True,
        )
        model = transformers.Qwen3MoeForCausalLM(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0.0, 0.3)
            elif "norm" in name:
                parameter.normal_(1.0, 0.2)
    return model.eval()


def save(family: str, directory: Path, n_layers: int = 3) -> Any:
    """Write the model of `family` into `directory`; returns it."""
    model = reference(family, n_layers)
    model.save_pretrained(directory)
    return model


def load(directory: Path, precision: Precision = "float32", **options: Any) -> Model:
    return Model(read_config(directory), SafetensorsSource(directory), precision, **options)


def greedy(model: Any, ids: list[int], n: int) -> list[int]:
    """The `transformers` reference: greedy tokens, without a cache."""
    out = list(ids)
    with torch.inference_mode():
        for _ in range(n):
            logits = model(torch.tensor([out])).logits[0, -1]
            out.append(int(logits.argmax()))
    return out[len(ids) :]


@functools.lru_cache(maxsize=4)
def prompts(n: int = 12, seed: int = 3, longest: int = 60) -> list[list[int]]:
    """Prompts of several lengths, some of which share a beginning."""
    import random

    rng = random.Random(seed)
    stems = [[rng.randrange(VOCAB) for _ in range(rng.randrange(5, longest))] for _ in range(3)]
    made: list[list[int]] = []
    for i in range(n):
        stem = stems[i % 3] if i % 4 else []
        made.append(stem + [rng.randrange(VOCAB) for _ in range(rng.randrange(1, 25))])
    return made
