"""One model in the formats that other engines read: safetensors with `config.json`, and F16 GGUF.

python -m runtime.backends.torch_engine.export MODEL DIRECTORY
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import torch as storage

from runtime.backends.torch_engine.errors import bad_file
from runtime.backends.torch_engine.loading import find_model
from runtime.backends.torch_engine.shape import ModelShape
from runtime.backends.torch_engine.weights import WeightSource, read_gguf_weights
from runtime.models.gguf_file import read_gguf
from runtime.models.rewrite import rewrite_as_f16

_CLASSES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}


def export_checkpoint(gguf: Path, directory: Path) -> None:
    """Write `config.json`, `model.safetensors` (dequantized, F16) and `model-f16.gguf`. Dense
    models alone."""
    directory.mkdir(parents=True, exist_ok=True)
    header = read_gguf(gguf)
    shape, source = read_gguf_weights(header)
    if shape.architecture not in _CLASSES:
        raise bad_file(f"{gguf}: {shape.architecture} is not exported; {', '.join(_CLASSES)} are")
    rewrite_as_f16(header, directory / "model-f16.gguf")
    tensors = {n: source.get(n).to(torch.float16) for n in tensor_names(shape, source)}
    path = directory / "model.safetensors"
    cast("Any", storage).save_file(tensors, path, metadata={"format": "pt"})
    document = json.dumps(_config(shape), indent=2)
    (directory / "config.json").write_text(document, encoding="utf-8")


def tensor_names(shape: ModelShape, source: WeightSource) -> list[str]:
    """Tensors of a dense checkpoint that `source` has."""
    outer = ["model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"]
    inner = [
        "input_layernorm.weight",
        "post_attention_layernorm.weight",
        *(f"self_attn.{p}_proj.{kind}" for p in "qkvo" for kind in ("weight", "bias")),
        *(f"self_attn.{p}_norm.weight" for p in "qk"),
        *(f"mlp.{p}_proj.weight" for p in ("gate", "up", "down")),
    ]
    names = outer + [f"model.layers.{i}.{n}" for i in range(shape.n_layers) for n in inner]
    return [n for n in names if source.has(n)]


def _config(shape: ModelShape) -> dict[str, Any]:
    return {
        "architectures": [_CLASSES[shape.architecture]],
        "model_type": shape.architecture,
        "hidden_size": shape.d_model,
        "intermediate_size": shape.d_ff,
        "num_hidden_layers": shape.n_layers,
        "num_attention_heads": shape.n_heads,
        "num_key_value_heads": shape.n_kv_heads,
        "head_dim": shape.head_dim,
        "vocab_size": shape.vocab_size,
        "max_position_embeddings": shape.context_tokens,
        "rms_norm_eps": shape.norm_eps,
        "rope_theta": shape.rope_base,
        "tie_word_embeddings": shape.tied,
        "hidden_act": "silu",
        "torch_dtype": "float16",
    }


if __name__ == "__main__":
    export_checkpoint(find_model(sys.argv[1], announce=print), Path(sys.argv[2]))
