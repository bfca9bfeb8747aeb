"""A tokenizer with one token for each byte and three control tokens (ids 0 to 2)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write_tokenizer(folder: Path, template: str = CHATML, *, adds_bos: bool = False) -> Path:
    """Its files in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    shifted = iter(range(256, 512))
    characters = [chr(b) if b in printable else chr(next(shifted)) for b in range(256)]
    vocabulary = {token: i for i, token in enumerate((*SPECIAL, *characters))}
    processor: dict[str, Any] | None = None
    if adds_bos:
        processor = {
            "type": "TemplateProcessing",
            "single": [
                {"SpecialToken": {"id": SPECIAL[1], "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}},
            ],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}],
            "special_tokens": {SPECIAL[1]: {"id": SPECIAL[1], "ids": [1], "tokens": [SPECIAL[1]]}},
        }
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    document = {
        "version": "1.0",
        "added_tokens": [
            {
                "id": i, "content": token, "single_word": False, "lstrip": False, "rstrip": False,
                "normalized": False, "special": True,
            }
            for i, token in enumerate(SPECIAL)
        ],
        "pre_tokenizer": {**byte_level, "use_regex": False},
        "post_processor": processor,
        "decoder": {**byte_level, "use_regex": True},
        "model": {"type": "BPE", "vocab": vocabulary, "merges": []},
    }  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(document), "utf-8")
    config = {
        "bos_token": SPECIAL[1],
        "eos_token": {"content": SPECIAL[2]},
        "chat_template": template,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config), "utf-8")
    return folder
