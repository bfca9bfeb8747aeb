"""Hugging Face folders become the GGUF files that they would be elsewhere."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from tiny_model import CHAT_TEMPLATE, CONTEXT, HEADS, HIDDEN, INNER, KV_HEADS, LAYERS

from runtime.errors import ModelFileError
from runtime.models.gguf_file import read_gguf
from runtime.models.store import ModelStore

HF_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "attn_norm.weight": "input_layernorm.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
    "attn_q.weight": "self_attn.q_proj.weight",
    "attn_k.weight": "self_attn.k_proj.weight",
    "attn_v.weight": "self_attn.v_proj.weight",
    "attn_output.weight": "self_attn.o_proj.weight",
    "ffn_gate.weight": "mlp.gate_proj.weight",
    "ffn_up.weight": "mlp.up_proj.weight",
    "ffn_down.weight": "mlp.down_proj.weight",
}


def write_safetensors(path: Path, tensors: dict[str, Any]) -> None:
    """F32 stays, F16 stays, uint16 is written as BF16."""
    names = {"float32": "F32", "float16": "F16", "uint16": "BF16"}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    blob = b""
    for name, values in tensors.items():
        data = np.ascontiguousarray(values).tobytes()
        header[name] = {
            "dtype": names[str(values.dtype)],
            "shape": list(values.shape),
            "data_offsets": [len(blob), len(blob) + len(data)],
        }
        blob += data
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + blob)


def halves_apart(values: Any, heads: int) -> Any:
    """GGUF's rotary pairs back where Hugging Face has them, by index."""
    width = values.shape[0] // heads
    order = [
        h * width + i for h in range(heads) for i in (*range(0, width, 2), *range(1, width, 2))
    ]
    return values[order]


@pytest.fixture
def folder(tiny_gguf: Path, tmp_path: Path) -> Path:
    """The tiny model as a Hugging Face folder, in two shards."""
    reader = gguf.GGUFReader(tiny_gguf)
    tensors: dict[str, Any] = {}
    for tensor in reader.tensors:
        block, _, rest = tensor.name.removeprefix("blk.").partition(".")
        if tensor.name in HF_NAMES:
            tensors[HF_NAMES[tensor.name]] = tensor.data
            continue
        values = tensor.data
        if rest == "attn_q.weight":
            values = halves_apart(values, HEADS)
        if rest == "attn_k.weight":
            values = halves_apart(values, KV_HEADS)
        tensors[f"model.layers.{block}.{HF_NAMES[rest]}"] = values
    folder = tmp_path / "hf"
    folder.mkdir()
    names = list(tensors)
    shards = {"a.safetensors": names[:7], "b.safetensors": names[7:]}
    for shard, members in shards.items():
        write_safetensors(folder / shard, {name: tensors[name] for name in members})
    weight_map = {name: shard for shard, members in shards.items() for name in members}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    header = read_gguf(tiny_gguf)
    config = {
        "architectures": ["LlamaForCausalLM"], "max_position_embeddings": CONTEXT,
        "num_hidden_layers": LAYERS, "hidden_size": HIDDEN, "intermediate_size": INNER,
        "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "rope_theta": 10_000.0,
        "rms_norm_eps": 1e-5, "vocab_size": len(header.tokens), "tie_word_embeddings": True,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    special = header.special_tokens
    tokenizer = {
        "added_tokens": [{"id": i, "content": t, "special": True} for t, i in special.items()],
        "pre_tokenizer": {"pretokenizers": [{"type": "Digits", "individual_digits": True}]},
        "model": {
            "type": "BPE",
            "vocab": {t: i for i, t in enumerate(header.tokens)},
            "merges": header.metadata["tokenizer.ggml.merges"],
        },
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    settings = {
        "bos_token": "<|im_start|>", "eos_token": {"content": "<|im_end|>"},
        "pad_token": "<|im_end|>", "chat_template": CHAT_TEMPLATE,
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def test_a_folder_becomes_the_file_that_it_came_from(
    folder: Path, tiny_gguf: Path, tmp_path: Path
) -> None:
    model = ModelStore(tmp_path / "models").add_file(folder, "converted")
    expected, found = read_gguf(tiny_gguf), read_gguf(model.weights)
    assert found.tokens == expected.tokens and found.special_tokens == expected.special_tokens
    assert found.chat_template == expected.chat_template
    assert found.kv_values_per_token == expected.kv_values_per_token
    for key in set(expected.metadata) - {"general.name", "tokenizer.ggml.unknown_token_id"}:
        assert found.metadata[key] == expected.metadata[key], key
    before = {t.name: t for t in gguf.GGUFReader(tiny_gguf).tensors}
    after = {t.name: t for t in gguf.GGUFReader(model.weights).tensors}
    assert set(before) == set(after)
    for name, tensor in before.items():
        assert np.array_equal(tensor.data, after[name].data), name


def test_bfloat16_is_read_without_loss(tmp_path: Path) -> None:
    from runtime.models.safetensors_file import read_tensors

    values = np.array([[1.0, -2.5], [3e38, 1e-30]], np.float32)
    halves = (values.view(np.uint32) >> 16).astype(np.uint16)
    write_safetensors(tmp_path / "x.safetensors", {"x": halves})
    ((name, found),) = read_tensors(tmp_path / "x.safetensors")
    assert name == "x" and np.array_equal(found.view(np.uint32) >> 16, halves)


def test_folders_that_cannot_be_used_say_why(folder: Path, tmp_path: Path) -> None:
    store = ModelStore(tmp_path / "models")
    config = json.loads((folder / "config.json").read_text())

    def refused(match: str) -> None:
        with pytest.raises(ModelFileError, match=match):
            store.add_file(folder, "x")
        assert store.find("x") is None

    def with_config(**changes: Any) -> None:
        (folder / "config.json").write_text(json.dumps({**config, **changes}))

    with_config(architectures=["MambaForCausalLM"])
    refused("MambaForCausalLM; the local engine runs: LlamaForCausalLM")
    with_config(rope_scaling={"rope_type": "yarn"})
    refused(r"scales its rotary positions \(yarn\)")
    (folder / "config.json").write_text(
        json.dumps({k: v for k, v in config.items() if k != "hidden_size"})
    )
    refused("does not say 'hidden_size'")
    with_config()
    shard = (folder / "b.safetensors").read_bytes()
    (folder / "b.safetensors").write_bytes(shard[:-100])
    refused("truncated")
    (folder / "b.safetensors").unlink()
    refused("has no b.safetensors")
    (folder / "tokenizer.json").write_text('{"model": {"type": "Unigram"}}')
    (folder / "b.safetensors").write_bytes(shard)
    refused("no byte-level BPE")
    (folder / "tokenizer.json").unlink()
    refused("has no tokenizer.json")
    (folder / "config.json").write_text("not json")
    refused("cannot be read")
