"""A model small enough for the default tests: random weights, a real vocabulary of bytes, and the
chat format of the models that users run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CONTROL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<repo_name>")
HIDDEN, HEADS, KV_HEADS, LAYERS, INNER, CONTEXT = 64, 2, 1, 2, 128, 4096


def byte_letters() -> list[str]:
    """The letter by which byte-level BPE writes each byte (GPT-2's table)."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = {byte: chr(byte) for byte in plain}
    others = (byte for byte in range(256) if byte not in letters)
    letters.update({byte: chr(256 + i) for i, byte in enumerate(others)})
    return [letters[byte] for byte in range(256)]


def write_tiny_model(path: Path, *, seed: int = 0, **overrides: Any) -> Path:
    """A llama of 0.2 MB. `overrides` are metadata texts that replace the usual ones."""
    rng = np.random.default_rng(seed)
    merges = ["h e", "l l", "he ll", "hell o", "Ġ w", "o r"]
    tokens = [*CONTROL, *byte_letters(), *(merge.replace(" ", "") for merge in merges)]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_context_length(CONTEXT)
    writer.add_block_count(LAYERS)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_freq_base(10_000.0)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_file_type(int(gguf.LlamaFileType.MOSTLY_F16))
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3] * len(CONTROL) + [1] * (len(tokens) - len(CONTROL)))
    writer.add_token_merges(merges)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_bool("tokenizer.ggml.add_bos_token", False)
    writer.add_chat_template(overrides.get("chat_template", CHAT_TEMPLATE))

    def weights(*shape: int) -> Any:
        return rng.normal(0.0, 0.4, shape).astype(np.float16)

    writer.add_tensor("token_embd.weight", weights(len(tokens), HIDDEN))
    writer.add_tensor("output_norm.weight", np.ones(HIDDEN, np.float32))
    head = HIDDEN // HEADS * KV_HEADS
    for layer in range(LAYERS):
        name = f"blk.{layer}"
        writer.add_tensor(f"{name}.attn_norm.weight", np.ones(HIDDEN, np.float32))
        writer.add_tensor(f"{name}.ffn_norm.weight", np.ones(HIDDEN, np.float32))
        writer.add_tensor(f"{name}.attn_q.weight", weights(HIDDEN, HIDDEN))
        writer.add_tensor(f"{name}.attn_k.weight", weights(head, HIDDEN))
        writer.add_tensor(f"{name}.attn_v.weight", weights(head, HIDDEN))
        writer.add_tensor(f"{name}.attn_output.weight", weights(HIDDEN, HIDDEN))
        writer.add_tensor(f"{name}.ffn_gate.weight", weights(INNER, HIDDEN))
        writer.add_tensor(f"{name}.ffn_up.weight", weights(INNER, HIDDEN))
        writer.add_tensor(f"{name}.ffn_down.weight", weights(HIDDEN, INNER))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
