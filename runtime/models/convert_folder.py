"""A Hugging Face folder (config.json, tokenizer.json, safetensors) as one GGUF file.

The conventions are those of GGUF: the names of tensors come from the `gguf` package; llama's query
and key weights have the halves of their rotary pairs interleaved; matrices are F16, vectors F32.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

from runtime.errors import ModelFileError
from runtime.models.safetensors_file import read_tensors, weight_files

ARCHITECTURES = {
    "LlamaForCausalLM": "llama",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
}
_F16_MAX = 65504.0


def convert_folder(folder: Path, target: Path) -> None:
    """Write the model in `folder` to the GGUF file `target`. Raises `ModelFileError`."""
    config = _read(folder, "config.json")
    tokenizer = _read(folder, "tokenizer.json")
    files = weight_files(folder)
    names = cast("list[str]", config.get("architectures") or ["none"])
    architecture = ARCHITECTURES.get(names[0])
    if architecture is None:
        raise ModelFileError(
            f"{folder / 'config.json'} names architecture {names[0]}; the local engine runs: "
            f"{', '.join(ARCHITECTURES)}"
        )
    scaling: dict[str, Any] = config.get("rope_scaling") or config.get("rope_parameters") or {}
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind != "default":
        raise ModelFileError(
            f"{folder / 'config.json'} scales its rotary positions ({kind}), which is not converted"
        )
    try:
        import gguf
    except ImportError as error:
        raise ModelFileError(
            f"converting {folder} needs a package: {error}; pip install 'halo-flow[local]'"
        ) from error
    writer = cast("Any", gguf.GGUFWriter(target, architecture))
    try:
        _write_shape(writer, config, scaling)
        _write_vocabulary(writer, folder, tokenizer, int(config["vocab_size"]))
        _write_weights(writer, gguf, architecture, config, files)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    except KeyError as error:
        raise ModelFileError(f"{folder / 'config.json'} does not say {error}") from error
    finally:
        writer.close()


def _write_shape(writer: Any, config: dict[str, Any], rope: dict[str, Any]) -> None:
    heads = int(config["num_attention_heads"])
    head_width = int(config.get("head_dim") or config["hidden_size"] // heads)
    writer.add_context_length(int(config["max_position_embeddings"]))
    writer.add_block_count(int(config["num_hidden_layers"]))
    writer.add_embedding_length(int(config["hidden_size"]))
    writer.add_feed_forward_length(int(config["intermediate_size"]))
    writer.add_head_count(heads)
    writer.add_head_count_kv(int(config.get("num_key_value_heads") or heads))
    writer.add_key_length(head_width)
    writer.add_value_length(head_width)
    writer.add_rope_dimension_count(head_width)
    writer.add_rope_freq_base(float(rope.get("rope_theta", config.get("rope_theta", 10_000.0))))
    writer.add_layer_norm_rms_eps(float(config["rms_norm_eps"]))
    writer.add_vocab_size(int(config["vocab_size"]))
    writer.add_file_type(1)  # mostly F16


def _write_vocabulary(
    writer: Any, folder: Path, tokenizer: dict[str, Any], vocab_size: int
) -> None:
    model: dict[str, Any] = tokenizer.get("model") or {}
    if model.get("type") != "BPE" or model.get("byte_fallback"):
        raise ModelFileError(
            f"{folder / 'tokenizer.json'} is no byte-level BPE tokenizer (it says "
            f"{model.get('type')!r}); take the model as a GGUF file"
        )
    tokens = [f"[PAD{i}]" for i in range(vocab_size)]
    types = [5] * vocab_size
    added = cast("list[dict[str, Any]]", tokenizer.get("added_tokens") or [])
    vocabulary: dict[str, int] = model["vocab"]
    for text, number in vocabulary.items():
        tokens[number], types[number] = text, 1
    for token in added:
        number = int(token["id"])
        if number < vocab_size:
            tokens[number], types[number] = token["content"], 3 if token["special"] else 4
    pairs: list[str | list[str]] = model["merges"]
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in pairs]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(_pre_tokenizer(tokenizer))
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(merges)
    settings = _read(folder, "tokenizer_config.json", required=False)
    generation = _read(folder, "generation_config.json", required=False)
    config = _read(folder, "config.json")
    ids = {text: number for number, text in enumerate(tokens)}
    for name, add in (
        ("bos", writer.add_bos_token_id),
        ("eos", writer.add_eos_token_id),
        ("pad", writer.add_pad_token_id),
    ):
        told: Any = settings.get(f"{name}_token")
        if isinstance(told, dict):
            told = cast("dict[str, Any]", told).get("content")
        key = f"{name}_token_id"
        told_id: Any = ids.get(str(told), generation.get(key, config.get(key)))
        if isinstance(told_id, list) and told_id:
            told_id = cast("Any", told_id)[0]
        if isinstance(told_id, int):
            add(told_id)
    writer.add_add_bos_token(bool(settings.get("add_bos_token", False)))
    template = settings.get("chat_template")
    if (folder / "chat_template.jinja").is_file():
        template = (folder / "chat_template.jinja").read_text("utf-8")
    if isinstance(template, str):
        writer.add_chat_template(template)


def _pre_tokenizer(tokenizer: dict[str, Any]) -> str:
    """GGUF's name for how the tokenizer splits text into words."""
    text = json.dumps(tokenizer.get("pre_tokenizer") or {})
    if r"\\p{N}{1,3}" in text:
        return "llama-bpe"
    if r"\\p{N}" in text and "(?i:" in text:
        return "qwen2"
    if '"individual_digits": true' in text:
        return "smollm"
    return "gpt-2"


def _write_weights(
    writer: Any, gguf: Any, architecture: str, config: dict[str, Any], files: list[Path]
) -> None:
    import numpy as np

    kinds = {name: arch for arch, name in gguf.MODEL_ARCH_NAMES.items()}
    layers = int(config["num_hidden_layers"])
    names = gguf.get_tensor_name_map(kinds[architecture], layers)
    heads = int(config["num_attention_heads"])
    kv_heads = int(config.get("num_key_value_heads") or heads)
    for file in files:
        for name, values in read_tensors(file):
            if name.endswith("rotary_emb.inv_freq") or (
                name == "lm_head.weight" and config.get("tie_word_embeddings")
            ):
                continue
            new_name = names.get_name(name, try_suffixes=(".weight", ".bias"))
            if new_name is None:
                raise ModelFileError(f"{file}: {name!r} is no tensor of a {architecture} model")
            if architecture == "llama" and ".q_proj." in name:
                values = _interleaved(values, heads)
            elif architecture == "llama" and ".k_proj." in name:
                values = _interleaved(values, kv_heads)
            wide = values.ndim < 2 or np.abs(values).max(initial=0.0) > _F16_MAX
            writer.add_tensor(new_name, values.astype(np.float32 if wide else np.float16))


def _interleaved(values: Any, heads: int) -> Any:
    """Rotary pairs as neighbours instead of halves apart, head by head."""
    rows = values.shape[0]
    shape = (heads, 2, rows // heads // 2, *values.shape[1:])
    return values.reshape(shape).swapaxes(1, 2).reshape(values.shape)


def _read(folder: Path, name: str, *, required: bool = True) -> dict[str, Any]:
    path = folder / name
    if not path.is_file():
        if not required:
            return {}
        raise ModelFileError(
            f"{folder} has no {name}; a Hugging Face folder has config.json, tokenizer.json and "
            "weights as safetensors"
        )
    try:
        document = json.loads(path.read_text("utf-8"))
    except (ValueError, OSError) as error:
        raise ModelFileError(f"{path} cannot be read: {error}") from error
    if not isinstance(document, dict):
        raise ModelFileError(f"{path} is not a JSON object")
    return cast("dict[str, Any]", document)
