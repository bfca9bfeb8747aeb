"""Tensors of a model file under one set of names: those of Hugging Face checkpoints.

Two sources: a directory with `config.json` and safetensors, and a GGUF file. Nothing is unpickled:
a directory that has only `.bin` or `.pt` weights is refused.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import torch

from runtime.backends.torch_engine.arrays import to_tensor
from runtime.backends.torch_engine.errors import bad_file
from runtime.backends.torch_engine.shape import (
    ARCHITECTURES,
    Architecture,
    ModelShape,
    MoeShape,
    RopeScaling,
)
from runtime.models.gguf_file import GgufHeader, GgufTensor

_DEQUANTIZED_AT_ONCE = 1 << 22


class WeightSource(Protocol):
    """Named tensors. `get` raises `ModelFileError` for a missing one."""

    def get(self, name: str) -> torch.Tensor: ...

    def has(self, name: str) -> bool: ...


_HF_ARCHITECTURES: dict[str, Architecture] = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "llama",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
    "Qwen3MoeForCausalLM": "qwen3moe",
}


def read_config(directory: Path) -> ModelShape:
    """The shape that `config.json` of a Hugging Face checkpoint describes."""
    path = directory / "config.json"
    try:
        config = cast("dict[str, Any]", json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise bad_file(f"{path}: no readable model configuration: {error}") from error
    names = cast("list[str]", config.get("architectures") or [])
    known = (n for n in names if n in _HF_ARCHITECTURES)
    architecture = _HF_ARCHITECTURES.get(next(known, ""))
    if architecture is None:
        raise bad_file(
            f"{path}: architecture {', '.join(names) or 'not named'}; the torch engine runs "
            f"{', '.join(_HF_ARCHITECTURES)}"
        )
    if config.get("quantization_config"):
        raise bad_file(
            f"{path}: the checkpoint is quantized; load float weights and ask for int8 instead"
        )
    get = _Getter(path, config)
    rope = cast("dict[str, Any]", config.get("rope_parameters") or config.get("rope_scaling") or {})
    n_heads = get.int("num_attention_heads")
    context_tokens = get.int("max_position_embeddings")
    window = config.get("sliding_window")
    if window and config.get("use_sliding_window", True) and window < context_tokens:
        # Within the window attention is the ordinary one, so a shorter context is all it costs.
        context_tokens = int(window)
    moe = None
    if architecture == "qwen3moe":
        if config.get("mlp_only_layers") or config.get("decoder_sparse_step", 1) != 1:
            raise bad_file(f"{path}: layers without experts in a mixture are not supported")
        moe = MoeShape(
            get.int("num_experts", config.get("num_local_experts")),
            get.int("num_experts_per_tok"),
            get.int("moe_intermediate_size"),
            bool(config.get("norm_topk_prob", False)),
        )
    return _checked(
        path,
        ModelShape(
            architecture=architecture,
            n_layers=get.int("num_hidden_layers"),
            d_model=get.int("hidden_size"),
            n_heads=n_heads,
            n_kv_heads=get.int("num_key_value_heads", n_heads),
            head_dim=config.get("head_dim") or get.int("hidden_size") // n_heads,
            d_ff=get.int("intermediate_size"),
            vocab_size=get.int("vocab_size"),
            context_tokens=context_tokens,
            norm_eps=float(config.get("rms_norm_eps", 1e-6)),
            rope_base=float(rope.get("rope_theta") or config.get("rope_theta") or 10000.0),
            rope_scaling=_rope_scaling(path, rope),
            qkv_bias=bool(config.get("attention_bias", architecture == "qwen2")),
            qk_norm=architecture in ("qwen3", "qwen3moe"),
            tied=bool(config.get("tie_word_embeddings", False)),
            moe=moe,
        ),
    )


class SafetensorsSource:
    """The tensors of `*.safetensors` in one directory, mapped, not read."""

    def __init__(self, directory: Path) -> None:
        from safetensors import SafetensorError, safe_open

        self._directory = directory
        self._files: dict[str, Any] = {}
        paths = sorted(directory.glob("*.safetensors"))
        if not paths:
            raise bad_file(
                f"{directory}: no *.safetensors file; weights in pickle files (.bin, .pt) are "
                "never loaded: convert them to safetensors"
            )
        for path in paths:
            try:
                file = safe_open(path, framework="pt")
            except (SafetensorError, OSError) as error:
                raise bad_file(f"{path}: not a whole safetensors file: {error}") from error
            self._files.update(dict.fromkeys(cast("Any", file).keys(), file))

    def has(self, name: str) -> bool:
        return name in self._files

    def get(self, name: str) -> torch.Tensor:
        file = self._files.get(name)
        if file is None:
            raise bad_file(f"{self._directory}: tensor {name!r} is missing")
        return cast("torch.Tensor", file.get_tensor(name))


_GGUF_LAYER_NAMES = {
    "input_layernorm.weight": "attn_norm.weight",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm.weight": "ffn_norm.weight",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.gate.weight": "ffn_gate_inp.weight",
    "mlp.experts.gate": "ffn_gate_exps.weight",
    "mlp.experts.up": "ffn_up_exps.weight",
    "mlp.experts.down": "ffn_down_exps.weight",
}
_GGUF_NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}


def gguf_name(name: str) -> str:
    """The GGUF tensor that holds what Hugging Face calls `name`.

    Example:
        >>> gguf_name("model.layers.3.self_attn.q_proj.bias")
        'blk.3.attn_q.bias'
    """
    if name in _GGUF_NAMES:
        return _GGUF_NAMES[name]
    _, _, layer, rest = name.split(".", 3)
    stem = max((s for s in _GGUF_LAYER_NAMES if rest.startswith(s)), key=len, default="")
    return f"blk.{layer}.{_GGUF_LAYER_NAMES.get(stem, '?')}{rest[len(stem) :]}"


class GgufSource:
    """The tensors of a GGUF file, mapped and dequantized one by one as they are asked for."""

    def __init__(self, header: GgufHeader, shape: ModelShape) -> None:
        self._header, self._shape = header, shape
        self._tensors = {t.name: t for t in header.tensors}
        self._bytes = np.memmap(header.path, np.uint8, mode="r")

    def has(self, name: str) -> bool:
        return gguf_name(name) in self._tensors

    def get(self, name: str) -> torch.Tensor:
        stored = self._tensors.get(gguf_name(name))
        if stored is None:
            raise bad_file(f"{self._header.path}: tensor {gguf_name(name)!r} is missing")
        weight = self._dequantized(stored)
        if self._shape.architecture == "llama" and ("q_proj" in name or "k_proj" in name):
            heads = self._shape.n_heads if "q_proj" in name else self._shape.n_kv_heads
            if weight.shape[0] % (2 * heads):
                raise bad_file(f"tensor {stored.name!r} has shape {tuple(weight.shape)}")
            weight = _half_split_rows(weight, heads)
        return weight

    def _dequantized(self, stored: GgufTensor) -> torch.Tensor:
        from gguf import GGMLQuantizationType, dequantize

        start = self._header.data_start + stored.offset
        data = self._bytes[start : start + stored.size_bytes]
        values = np.empty(math.prod(stored.shape), np.float32)
        n_rows = math.prod(stored.shape[1:]) or 1
        row_bytes, row_values = len(data) // n_rows, len(values) // n_rows
        # Some rows at a time: enough to be fast, too few for large temporary arrays.
        step = max(1, _DEQUANTIZED_AT_ONCE // max(1, row_values))
        try:
            kind = GGMLQuantizationType[stored.type]
            for row in range(0, n_rows, step):
                part = data[row * row_bytes : (row + step) * row_bytes]
                out = dequantize(part.reshape(1, -1), kind)
                values[row * row_values : (row + step) * row_values] = out.reshape(-1)
        except (NotImplementedError, ValueError, KeyError) as error:
            raise bad_file(
                f"{self._header.path}: tensor {stored.name!r} of type {stored.type} cannot be "
                f"read: {error}"
            ) from error
        return to_tensor(values).reshape(tuple(reversed(stored.shape)))


def read_gguf_weights(header: GgufHeader) -> tuple[ModelShape, GgufSource]:
    """The shape and the tensors of a GGUF file."""
    path, architecture = header.path, header.architecture
    if architecture not in ARCHITECTURES:
        raise bad_file(
            f"{path}: architecture {architecture!r}; the torch engine runs "
            f"{', '.join(ARCHITECTURES)}"
        )
    names = {t.name for t in header.tensors}
    scaling = header.metadata.get(f"{architecture}.rope.scaling.type")
    if "rope_freqs.weight" in names or scaling not in (None, "none"):
        raise bad_file(
            f"{path}: scaled RoPE in GGUF is not supported; use the safetensors checkpoint"
        )
    own = {k.removeprefix(f"{architecture}."): v for k, v in header.metadata.items()}
    get = _Getter(path, own)
    n_heads = get.int("attention.head_count")
    moe = None
    if architecture == "qwen3moe":
        moe = MoeShape(
            get.int("expert_count"),
            get.int("expert_used_count"),
            get.int("expert_feed_forward_length"),
        )
    shape = ModelShape(
        architecture=architecture,
        n_layers=get.int("block_count"),
        d_model=get.int("embedding_length"),
        n_heads=n_heads,
        n_kv_heads=get.int("attention.head_count_kv", n_heads),
        head_dim=get.int("attention.key_length", get.int("embedding_length") // n_heads),
        d_ff=get.int("feed_forward_length", 1 if moe else None),
        vocab_size=len(header.tokens),
        context_tokens=get.int("context_length"),
        norm_eps=float(own.get("attention.layer_norm_rms_epsilon") or 1e-6),
        rope_base=float(own.get("rope.freq_base") or 10000.0),
        qkv_bias="blk.0.attn_q.bias" in names,
        qk_norm="blk.0.attn_q_norm.weight" in names,
        tied="output.weight" not in names,
        moe=moe,
    )
    shape = _checked(path, shape)
    return shape, GgufSource(header, shape)


class _Getter:
    """Whole numbers of a configuration, with an error that names the file and the field."""

    def __init__(self, path: Path, values: Mapping[str, Any]) -> None:
        self._path, self._values = path, values

    def int(self, key: str, default: int | None = None) -> int:
        value = self._values.get(key)
        if value is None:
            value = default
        if not isinstance(value, int) or isinstance(value, bool):
            raise bad_file(f"{self._path}: {key} is {value!r}; a whole number is expected")
        return value


def _checked(path: Path, shape: ModelShape) -> ModelShape:
    problem = shape.problem()
    if problem is not None:
        raise bad_file(f"{path}: {problem}")
    return shape


def _rope_scaling(path: Path, rope: Mapping[str, Any]) -> RopeScaling | None:
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind == "default":
        return None
    if kind not in ("linear", "llama3"):
        raise bad_file(f"{path}: RoPE scaling {kind!r}; the torch engine knows linear and llama3")
    return RopeScaling(
        "linear" if kind == "linear" else "llama3",
        float(rope["factor"]),
        float(rope.get("low_freq_factor", 1.0)),
        float(rope.get("high_freq_factor", 4.0)),
        int(rope.get("original_max_position_embeddings", 8192)),
    )


def _half_split_rows(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Undo GGUF's order of the rows of Llama's queries and keys: it interleaves the two halves
    that RoPE rotates, Hugging Face keeps them apart."""
    half = weight.shape[0] // heads // 2
    return weight.view(heads, half, 2, *weight.shape[1:]).transpose(1, 2).reshape(weight.shape)
