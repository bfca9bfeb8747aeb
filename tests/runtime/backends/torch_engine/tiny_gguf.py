"""The tiny checkpoints as GGUF files, written as llama.cpp's converter lays them out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFWriter, quantize
from tokenizers import pre_tokenizers

from runtime.backends.torch_engine.weights import SafetensorsSource, gguf_name, read_config


def interleave(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """The converter's order of Llama's query and key rows: the two halves of a head alternate."""
    half = weight.shape[0] // heads // 2
    return weight.view(heads, 2, half, -1).transpose(1, 2).reshape(weight.shape)


def write_gguf(
    checkpoint: Path,
    path: Path,
    *,
    architecture: str = "",
    quantization: GGMLQuantizationType | None = None,
    tokenizer: dict[str, Any] | None = None,
) -> Path:
    """Write the safetensors checkpoint as GGUF. `tokenizer` replaces fields of its tokenizer."""
    shape, source = read_config(checkpoint), SafetensorsSource(checkpoint)
    arch = architecture or shape.architecture
    writer = GGUFWriter(path, arch)
    writer.add_block_count(shape.n_layers)
    writer.add_embedding_length(shape.d_model)
    writer.add_head_count(shape.n_heads)
    writer.add_head_count_kv(shape.n_kv_heads)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_feed_forward_length(shape.d_ff)
    writer.add_context_length(shape.context_tokens)
    writer.add_layer_norm_rms_eps(shape.norm_eps)
    writer.add_rope_freq_base(shape.rope_base)
    if shape.moe is not None:
        writer.add_expert_count(shape.moe.n_experts)
        writer.add_expert_used_count(shape.moe.top_k)
        writer.add_expert_feed_forward_length(shape.moe.d_ff_expert)
    _write_tokenizer(writer, shape.vocab_size, tokenizer or {})
    for name in _names(source, shape.n_layers):
        weight = source.get(name).float()
        if arch == "llama" and ("q_proj" in name or "k_proj" in name):
            weight = interleave(weight, shape.n_heads if "q_proj" in name else shape.n_kv_heads)
        _add(writer, gguf_name(name), weight, quantization)
    if shape.moe is not None:
        for i in range(shape.n_layers):
            for part in ("gate", "up", "down"):
                p = f"model.layers.{i}.mlp.experts."
                rows = [
                    source.get(f"{p}{e}.{part}_proj.weight") for e in range(shape.moe.n_experts)
                ]
                _add(writer, gguf_name(p + part), torch.stack(rows).float(), quantization)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _names(source: SafetensorsSource, n_layers: int) -> list[str]:
    outer = ["model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"]
    inner = [
        "input_layernorm.weight",
        "post_attention_layernorm.weight",
        "mlp.gate.weight",
        *(f"self_attn.{p}_proj.{k}" for p in "qkvo" for k in ("weight", "bias")),
        *(f"self_attn.{p}_norm.weight" for p in "qk"),
        *(f"mlp.{p}_proj.weight" for p in ("gate", "up", "down")),
    ]
    names = outer + [f"model.layers.{i}.{n}" for i in range(n_layers) for n in inner]
    return [n for n in names if source.has(n)]


def _add(
    writer: GGUFWriter, name: str, weight: torch.Tensor, kind: GGMLQuantizationType | None
) -> None:
    values = weight.contiguous().numpy()
    if kind is None or values.ndim == 1 or values.shape[-1] % 32:
        writer.add_tensor(name, values.astype(np.float32))
    else:
        writer.add_tensor(name, quantize(values, kind), raw_dtype=kind)


def _write_tokenizer(writer: GGUFWriter, vocab_size: int, fields: dict[str, Any]) -> None:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = ["h e", "l l", "he ll"]
    tokens = ["<|im_end|>", *alphabet, *(m.replace(" ", "") for m in merges)]
    tokens = (tokens + [f"<pad{i}>" for i in range(vocab_size)])[:vocab_size]
    known = [m for m in merges if m.replace(" ", "") in tokens]
    writer.add_tokenizer_model(fields.get("model", "gpt2"))
    writer.add_tokenizer_pre(fields.get("pre", "qwen2"))
    writer.add_token_list(tokens)
    writer.add_token_types([3] + [1] * (len(tokens) - 1))
    writer.add_token_merges(fields.get("merges", known or ["a b"]))
    if fields.get("eos", True):
        writer.add_eos_token_id(0)
