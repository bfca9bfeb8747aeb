"""A complete small checkpoint with random weights: what a model hub's folder holds, in 1 MB.

Its tokens are bytes and a few control tokens, its template is ChatML. It says nothing sensible, but
it is loaded, tokenized and run as a real one.
"""

from __future__ import annotations

import json
from pathlib import Path

CONTROL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 2048,
}


def write_checkpoint(directory: Path, seed: int = 1) -> Path:
    """Write the files and return the directory."""
    directory.mkdir(parents=True, exist_ok=True)
    vocab_size = _write_tokenizer(directory)
    _write_weights(directory, vocab_size, seed)
    config = {
        **SIZES,
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": vocab_size,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        "eos_token_id": 2,
    }
    (directory / "config.json").write_text(json.dumps(config), "utf-8")
    tokenizer_config = {"chat_template": TEMPLATE, "eos_token": "<|im_end|>"}
    (directory / "tokenizer_config.json").write_text(json.dumps(tokenizer_config), "utf-8")
    return directory


def _write_tokenizer(directory: Path) -> int:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate((*CONTROL, *alphabet))}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in CONTROL])
    tokenizer.save(str(directory / "tokenizer.json"))
    return len(vocab)


def _write_weights(directory: Path, vocab_size: int, seed: int) -> None:
    import torch
    from safetensors.torch import save_file

    d, ff = SIZES["hidden_size"], SIZES["intermediate_size"]
    q = SIZES["num_attention_heads"] * SIZES["head_dim"]
    kv = SIZES["num_key_value_heads"] * SIZES["head_dim"]
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator) * 0.25

    tensors = {
        "model.embed_tokens.weight": random(vocab_size, d),
        "model.norm.weight": 1 + random(d),
    }
    for i in range(SIZES["num_hidden_layers"]):
        p = f"model.layers.{i}."
        tensors |= {
            p + "input_layernorm.weight": 1 + random(d),
            p + "post_attention_layernorm.weight": 1 + random(d),
            p + "self_attn.q_proj.weight": random(q, d),
            p + "self_attn.k_proj.weight": random(kv, d),
            p + "self_attn.v_proj.weight": random(kv, d),
            p + "self_attn.o_proj.weight": random(d, q),
            p + "mlp.gate_proj.weight": random(ff, d),
            p + "mlp.up_proj.weight": random(ff, d),
            p + "mlp.down_proj.weight": random(d, ff),
        }
    save_file(tensors, directory / "model.safetensors")
