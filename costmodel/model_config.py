"""Model profiles out of a Hugging Face `config.json`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from costmodel.errors import ProfileError
from costmodel.evidence import Evidence
from costmodel.models import (
    Experts,
    LatentAttention,
    LayerKind,
    LinearAttention,
    ModelProfile,
    checked,
)
from costmodel.profile_file import nearest

_BYTES = {"float32": 4.0, "float16": 2.0, "bfloat16": 2.0, "float8_e4m3fn": 1.0}
_DTYPES = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16", "float8_e4m3fn": "fp8"}

QKV_BIAS = {"qwen2": True, "qwen2_moe": True, "gpt_oss": True}
"""Families whose bias is not in the config, or has another default than false."""

FAMILIES = (
    "deepseek_v2", "deepseek_v3", "gemma2", "gemma3_text", "glm4_moe", "gpt_oss", "granite",
    "llama", "mistral", "ministral", "mixtral", "olmo2", "phi3", "qwen2", "qwen2_moe", "qwen3",
    "qwen3_moe", "qwen3_next", "smollm3",
)  # fmt: skip
"""`model_type`s whose layers this module counts."""


@dataclass
class _Config:
    """A config with typed access; every error names file and field."""

    values: Mapping[str, Any]
    file: str

    def error(self, field: str, problem: str) -> ProfileError:
        return ProfileError(f"{self.file}: field {field!r} {problem}", file=self.file, field=field)

    def integer(self, *names: str, default: int | None = None) -> int:
        """The first of `names` that is stated and not null."""
        for name in names:
            value = self.values.get(name)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise self.error(name, f"is {value!r}; it must be a whole number of at least 0")
            return value
        if default is None:
            raise self.error(names[0], "is missing")
        return default

    def flag(self, name: str, default: bool) -> bool:
        value = self.values.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.error(name, f"is {value!r}; it must be true or false")
        return value


def model_from_config(path: str | Path) -> ModelProfile:
    """The profile of the model whose `config.json` (or folder with one) is at `path`.

    Raises `ProfileError` naming the file and the field: a file that cannot be read, a family that
    is not known (with the nearest one), a field that is missing or impossible.
    """
    file = Path(path)
    if file.is_dir():
        file /= "config.json"
    try:
        values: Any = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ProfileError(f"{file}: cannot read it: {error.strerror}", file=str(file)) from error
    except ValueError as error:
        raise ProfileError(f"{file}: this is not JSON: {error}", file=str(file)) from error
    if not isinstance(values, dict):
        raise ProfileError(f"{file}: a config is a JSON object", file=str(file))
    config = _Config(cast("dict[str, Any]", values), str(file))
    family = config.values.get("model_type")
    if family not in FAMILIES and isinstance(inner := config.values.get("text_config"), dict):
        # Models that also see or hear keep the language model's shape in `text_config`.
        config = _Config({"torch_dtype": values.get("torch_dtype"), **inner}, str(file))  # pyright: ignore[reportUnknownMemberType,reportUnknownArgumentType]
        family = config.values.get("model_type")
    if family not in FAMILIES:
        near = nearest(str(family), FAMILIES)
        raise config.error(
            "model_type", f"is {family!r}, a family that is not known{near}; the families are: "
            f"{', '.join(FAMILIES)}. A profile in TOML can describe any other model",
        )  # fmt: skip
    return checked(_profile(config, str(family), file), str(file))


def _profile(config: _Config, family: str, file: Path) -> ModelProfile:
    d_model = config.integer("hidden_size")
    heads = config.integer("num_attention_heads")
    if heads < 1:
        raise config.error("num_attention_heads", f"is {heads}; it must be at least 1")
    n_layers = config.integer("num_hidden_layers")
    kinds, window = _layers(config, family, n_layers)
    weight_bytes, dtype = _storage(config)
    name = str(config.values.get("_name_or_path") or "") or file.resolve().parent.name
    source = Evidence("printed", str(file))
    numbers = (
        "n_layers", "d_model", "n_query_heads", "n_kv_heads", "head_dim", "d_ff", "vocab_size",
        "mlp_matrices", "max_context_tokens", "window_tokens", "weight_bytes_per_param",
    )  # fmt: skip
    assumed = Evidence("assumed", "bf16 cache and activations")
    return ModelProfile(
        name=name,
        title=name,
        family=family,
        n_layers=n_layers,
        d_model=d_model,
        n_query_heads=heads,
        n_kv_heads=config.integer("num_key_value_heads", default=heads),
        head_dim=config.integer("head_dim", default=d_model // heads),
        d_ff=config.integer("intermediate_size"),
        vocab_size=config.integer("vocab_size"),
        tied_embeddings=config.flag("tie_word_embeddings", family.startswith("gemma")),
        qkv_bias=config.flag("attention_bias", QKV_BIAS.get(family, False)),
        layer_kinds=kinds,
        window_tokens=window,
        experts=_experts(config, family, n_layers),
        latent=_latent(config, family),
        linear=_linear(config, family),
        output_gate=family == "qwen3_next",
        weight_bytes_per_param=weight_bytes,
        dtype=dtype,
        max_context_tokens=config.integer("max_position_embeddings"),
        evidence={
            **dict.fromkeys(numbers, source),
            "kv_bytes_per_element": assumed,
            "activation_bytes_per_element": assumed,
        },
    )


def _storage(config: _Config) -> tuple[float, str]:
    """Bytes of a weight and the dtype of the arithmetic."""
    name = config.values.get("torch_dtype") or config.values.get("dtype") or "bfloat16"
    if name not in _BYTES:
        near = nearest(str(name), _BYTES)
        raise config.error("torch_dtype", f"is {name!r}, which is not known{near}")
    quantised: Any = config.values.get("quantization_config")
    if isinstance(quantised, dict):
        settings = cast("dict[str, Any]", quantised)
        method, bits = settings.get("quant_method"), settings.get("bits")
        if method == "fp8":
            return 1.0, _DTYPES[name]
        if isinstance(bits, int) and bits > 0:
            return bits / 8, _DTYPES[name]
        if method != "mxfp4":  # the experts alone are stored so; `_experts` says it
            raise config.error(
                "quantization_config", f"has the method {method!r} and no bits; fp8, mxfp4 and "
                "methods that state bits are known",
            )  # fmt: skip
    return _BYTES[name], _DTYPES[name]


def _layers(config: _Config, family: str, n_layers: int) -> tuple[tuple[LayerKind, ...], int]:
    """How each layer attends, and the window."""
    stated = config.values.get("layer_types")
    window = config.integer("sliding_window", default=0)
    if isinstance(stated, list):
        words = cast("list[object]", stated)
        if len(words) != n_layers:
            raise config.error("layer_types", f"has {len(words)} entries for {n_layers} layers")
        known: dict[object, LayerKind] = {
            "full_attention": "full", "sliding_attention": "window", "linear_attention": "linear",
        }  # fmt: skip
        kinds: list[LayerKind] = []
        for word in words:
            if word not in known:
                raise config.error(
                    "layer_types", f"has {word!r}; known are: {', '.join(map(str, known))}"
                )
            kinds.append(known[word])
        return (tuple(kinds), window) if set(kinds) != {"full"} else ((), 0)
    if family == "qwen3_next":
        every = config.integer("full_attention_interval", default=4)
        return _every(n_layers, every, "linear"), 0
    if family == "gemma3_text" and window:
        every = config.integer("sliding_window_pattern", default=6)
        return _every(n_layers, every, "window"), window
    if family in ("gemma2", "gpt_oss") and window:
        return _every(n_layers, 2, "window"), window
    if family == "mistral" and window:
        return _kinds(n_layers, "window", first=0), window
    # Qwen2 and Qwen3 state a window that `use_sliding_window: false` switches off.
    if config.flag("use_sliding_window", False) and window:
        first = config.integer("max_window_layers", default=0)
        return _kinds(n_layers, "window", first=first), window
    return (), 0


def _every(n_layers: int, interval: int, other: LayerKind) -> tuple[LayerKind, ...]:
    """Each `interval`-th layer full, those before it of the other kind."""
    kinds: list[LayerKind] = []
    for layer in range(n_layers):
        kinds.append("full" if interval < 1 or (layer + 1) % interval == 0 else other)
    return tuple(kinds)


def _kinds(n_layers: int, other: LayerKind, first: int) -> tuple[LayerKind, ...]:
    """Full layers before `first`, then the other kind."""
    kinds: list[LayerKind] = []
    for layer in range(n_layers):
        kinds.append("full" if layer < first else other)
    return tuple(kinds)


def _experts(config: _Config, family: str, n_layers: int) -> Experts | None:
    n_experts = config.integer("n_routed_experts", "num_local_experts", "num_experts", default=0)
    if n_experts == 0:
        return None
    d_ff = config.integer("moe_intermediate_size", "intermediate_size")
    n_shared = config.integer("n_shared_experts", default=0)
    shared = config.integer("shared_expert_intermediate_size", default=n_shared * d_ff)
    mxfp4 = cast("dict[str, Any]", config.values.get("quantization_config") or {})
    return Experts(
        n_experts=n_experts,
        top_k=config.integer("num_experts_per_tok", "experts_per_token"),
        d_ff=d_ff,
        n_shared=n_shared or (1 if shared else 0),
        shared_d_ff=shared,
        n_dense_layers=min(config.integer("first_k_dense_replace", default=0), n_layers),
        weight_bytes_per_param=17 / 32 if mxfp4.get("quant_method") == "mxfp4" else None,
    )


def _latent(config: _Config, family: str) -> LatentAttention | None:
    if family not in ("deepseek_v2", "deepseek_v3"):
        return None
    return LatentAttention(
        kv_lora_rank=config.integer("kv_lora_rank"),
        q_lora_rank=config.integer("q_lora_rank", default=0),
        nope_head_dim=config.integer("qk_nope_head_dim"),
        rope_head_dim=config.integer("qk_rope_head_dim"),
        value_head_dim=config.integer("v_head_dim"),
    )


def _linear(config: _Config, family: str) -> LinearAttention | None:
    if family != "qwen3_next":
        return None
    return LinearAttention(
        n_key_heads=config.integer("linear_num_key_heads"),
        n_value_heads=config.integer("linear_num_value_heads"),
        key_head_dim=config.integer("linear_key_head_dim"),
        value_head_dim=config.integer("linear_value_head_dim"),
        conv_kernel=config.integer("linear_conv_kernel_dim", default=4),
    )
