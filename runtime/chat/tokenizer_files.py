"""The folder of a model's tokenizer, as the Hugging Face libraries write it: where it is, and what
its files say of the chat template and of single tokens."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast


def find_tokenizer(name: str, environ: Mapping[str, str] | None = None) -> Path | None:
    """The folder of a tokenizer that an engine names: a path of this machine, or a model that the
    local hub cache holds. None when it is neither."""
    path = Path(name)
    if (path / "tokenizer.json").is_file() or (path / "tokenizer_config.json").is_file():
        return path
    if name.count("/") != 1 or name.startswith(("/", ".")):
        return None
    environ = os.environ if environ is None else environ
    home = environ.get("HF_HOME") or str(Path(environ.get("HOME", "~")) / ".cache" / "huggingface")
    hub = Path(environ.get("HF_HUB_CACHE") or Path(home) / "hub")
    model = hub / f"models--{name.replace('/', '--')}"
    revision = model / "refs" / "main"
    if revision.is_file():
        snapshot = model / "snapshots" / revision.read_text("utf-8").strip()
        if (snapshot / "tokenizer_config.json").is_file():
            return snapshot
    return None


def chat_template_of(folder: Path, config: Mapping[str, Any]) -> str | None:
    """The chat template: of a file of its own, or of `config` (tokenizer_config.json), where a list
    has several by name. None when there is none."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text("utf-8")
    template: Any = config.get("chat_template")
    if isinstance(template, list):
        named = {t["name"]: t["template"] for t in cast("list[dict[str, str]]", template)}
        template = named.get("default") or next(iter(named.values()), None)
    return template if isinstance(template, str) else None


def token_text(token: object) -> str:
    """A token as tokenizer_config.json has it: a text, or an object with one."""
    if isinstance(token, dict):
        token = cast("dict[str, object]", token).get("content")
    return token if isinstance(token, str) else ""


def adds_bos(tokenizer: Mapping[str, Any]) -> bool:
    """Whether a tokenizer (tokenizer.json) puts a token in front of every text by itself."""
    processor: Any = tokenizer.get("post_processor") or {}
    parts: list[Any] = processor.get("processors") or [processor]
    return any(
        part.get("type") == "TemplateProcessing"
        and part.get("single")
        and "SpecialToken" in part["single"][0]
        for part in parts
    )
