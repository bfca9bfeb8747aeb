"""Model folders without weights: the shapes of an 8B and a 1B Llama, for servers that fill them
with random numbers. Such a model has the right speed and its answers mean nothing.

The tokenizer has one token for each byte, so that lengths in tokens are lengths in bytes. Head size
is 128 in both (the usual 1B has 64): it changes neither FLOPs nor bytes, and needs one set of
attention kernels instead of two.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

COMMON: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "attention_bias": False,
    "mlp_bias": False,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "dtype": "bfloat16",
    "torch_dtype": "bfloat16",
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "max_position_embeddings": 131072,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
    "use_cache": True,
    "head_dim": 128,
}
SHAPES: dict[str, dict[str, Any]] = {
    "8b": {
        "vocab_size": 128256,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
    },
    "1b": {
        "vocab_size": 128256,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
    },
    "tiny": {
        "vocab_size": 320,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 16384,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    },
}
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write_model(name: str, folder: Path) -> Path:
    """The folder of the shape `name` inside `folder`."""
    path = folder / name
    path.mkdir(parents=True, exist_ok=True)
    _write(path / "config.json", {**COMMON, **SHAPES[name]})
    write_tokenizer(path)
    return path


def write_tokenizer(path: Path) -> None:
    """A byte-level tokenizer with three control tokens, and a chat template."""
    vocabulary = {token: i for i, token in enumerate(SPECIAL)}
    for character in byte_characters():
        vocabulary[character] = len(vocabulary)
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    _write(
        path / "tokenizer.json",
        {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [
                {
                    "id": i, "content": token, "single_word": False, "lstrip": False,
                    "rstrip": False, "normalized": False, "special": True,
                }
                for i, token in enumerate(SPECIAL)
            ],
            "normalizer": None,
            "pre_tokenizer": {**byte_level, "use_regex": False},
            "post_processor": None,
            "decoder": {**byte_level, "use_regex": True},
            "model": {
                "type": "BPE", "dropout": None, "unk_token": None,
                "continuing_subword_prefix": None, "end_of_word_suffix": None,
                "fuse_unk": False, "byte_fallback": False, "vocab": vocabulary, "merges": [],
            },
        },
    )  # fmt: skip
    _write(
        path / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": SPECIAL[1],
            "eos_token": SPECIAL[2],
            "pad_token": SPECIAL[0],
            "model_max_length": 131072,
            "chat_template": CHAT_TEMPLATE,
        },
    )


def byte_characters() -> list[str]:
    """The character that byte-level tokenizers write for each byte, 0 to 255: printable ones stand
    for themselves, the others for characters from U+0100 on."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    shifted = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(shifted)) for byte in range(256)]


def _write(path: Path, document: dict[str, Any]) -> None:
    path.write_text(json.dumps(document), "utf-8")
