"""A model's chat format, from its tokenizer folder: conversations to prompt text, or to token ids.

The template is the model's own (Jinja, run by minijinja). Contents are data: the template is
rendered
with a placeholder for each, and what stands between the placeholders is the model's markup. Data
that contains none of the tokenizer's own tokens is spliced in as text, which the engine tokenizes.
Data that does is encoded here, with those tokens switched off, so it can never become a control
token (promise P6); the engine then gets token ids.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from costmodel.tokens import BYTES_PER_TOKEN
from runtime.backends.base import Message, Request
from runtime.errors import PromptError

_MARK = "\ue0f0{}\ue0f1"
_MARKS = re.compile("\ue0f0([0-9]+)\ue0f1")
_FUEL = 5_000_000
_PROSE = (
    "The committee met in the spring to decide which of the two bridges should be repaired first. "
    "Its members had read the reports, but they did not agree about the cost."
)
MAX_SKELETONS = 4096


class ChatFormat:
    """Renders conversations for one model.

    Attributes:
        control_tokens: what the tokenizer would take for one token of its own wherever it stands.
    """

    def __init__(self, folder: Path, *, backend: str) -> None:
        """Read `folder`: tokenizer.json, tokenizer_config.json, chat_template.jinja. Raises
        `PromptError` when it has no chat template."""
        self._folder = folder
        self._backend = backend
        config = _json(folder / "tokenizer_config.json")
        template = _template(folder, config)
        if template is None:
            raise PromptError(
                f"{folder} has no chat template (chat_template.jinja, or chat_template in "
                "tokenizer_config.json); this model cannot hold a conversation",
                backend=backend,
            )
        self._template = template
        self._names = {
            name: _token_text(config.get(name)) for name in ("bos_token", "eos_token", "pad_token")
        }
        tokenizer = _json(folder / "tokenizer.json")
        added = tokenizer.get("added_tokens", [])
        # Runs of blanks are tokens of their own in some vocabularies; they control nothing.
        self.control_tokens = tuple(
            sorted({str(t["content"]) for t in added if str(t["content"]).strip()})
        )
        self._control = (
            re.compile("|".join(map(re.escape, sorted(self.control_tokens, key=len)[::-1])))
            if self.control_tokens
            else None
        )
        self._adds_bos = bool(_adds_bos(tokenizer) and self._names["bos_token"])
        self._skeletons: dict[Any, list[str]] = {}
        self._environment: Any = None
        self._markup_encoder: Any = None
        self._data_encoder: Any = None

    def prompt(self, request: Request, *, open_end: bool = False) -> str | list[int]:
        """The prompt of `request`, ready for the answer. With `open_end` it stops where the last
        message's content stops: the prefix that longer prompts continue."""
        pieces, contents = self._pieces(request)
        if open_end:
            pieces = [*pieces[: len(contents)], ""]
        control = self._control
        if control is None or not any(control.search(text) for text in contents):
            parts = [pieces[0]]
            for text, piece in zip(contents, pieces[1:], strict=True):
                parts.append(text)
                parts.append(piece)
            return "".join(parts)
        return self._encode(pieces, contents)

    @property
    def offers_tools(self) -> bool:
        """Whether the template shows tools to the model."""
        return "tools" in self._template

    @cached_property
    def bytes_per_token(self) -> float:
        """Of English prose; the usual 4 where the tokenizer cannot be asked."""
        tokens = self.count_tokens(_PROSE)
        return BYTES_PER_TOKEN if not tokens else len(_PROSE) / tokens

    def without_control(self, text: str) -> str:
        """An answer without the model's own markup, for engines that were asked to keep it."""
        return text if self._control is None else self._control.sub("", text)

    def count_tokens(self, text: str) -> int | None:
        """Tokens of plain text; None without the `tokenizers` package."""
        try:
            self._load_encoders()
        except PromptError:
            return None
        return len(self._data_encoder.encode(text, add_special_tokens=False).ids)

    # --- template --------------------------------------------------------------------------------

    def _pieces(self, request: Request) -> tuple[list[str], list[str]]:
        """The markup around and between the contents, and the contents in the order of the
        template."""
        messages = request.messages
        shape = (
            tuple((m.role, m.name, m.tool_call_id, m.tool_calls, not m.content) for m in messages),
            request.tools,
        )
        skeleton = self._skeletons.get(shape)
        if skeleton is None:
            if len(self._skeletons) >= MAX_SKELETONS:
                self._skeletons.clear()
            skeleton = self._skeletons[shape] = _MARKS.split(self._render(request))
        # Split at marks: markup, index, markup, index, ..., markup. A template may leave a
        # message out, or put one twice.
        contents = [messages[int(index)].content for index in skeleton[1::2]]
        return skeleton[0::2], contents

    def _render(self, request: Request) -> str:
        import minijinja

        if self._environment is None:
            self._environment = minijinja.Environment(
                templates={"chat": self._template},
                globals={"raise_exception": _raise, "strftime_now": _no_date},
                filters={"tojson": _to_json, "from_json": json.loads},
                trim_blocks=True,
                lstrip_blocks=True,
                fuel=_FUEL,
            )
        messages = [self._message(i, m) for i, m in enumerate(request.messages)]
        tools = [
            {
                "type": "function",
                "function": {
                    "name": t.name,
                    "description": t.description,
                    "parameters": json.loads(t.parameters_json),
                },
            }
            for t in request.tools
        ]
        try:
            text: str = self._environment.render_template(
                "chat",
                messages=messages,
                tools=tools or None,
                add_generation_prompt=True,
                enable_thinking=False,
                **self._names,
            )
        except (minijinja.TemplateError, ValueError, TypeError) as error:
            raise PromptError(
                f"the chat template of {self._folder} refused the conversation: {error}",
                backend=self._backend,
            ) from error
        bos = self._names["bos_token"]
        if self._adds_bos and bos and text.startswith(bos):
            text = text[len(bos) :]  # the tokenizer puts it there by itself
        return text

    def _message(self, index: int, message: Message) -> dict[str, Any]:
        # An empty content needs no placeholder, and templates test for it.
        content = _MARK.format(index) if message.content else ""
        turn: dict[str, Any] = {"role": message.role, "content": content}
        if message.name:
            turn["name"] = self._defused(message.name)
        if message.tool_call_id:
            turn["tool_call_id"] = self._defused(message.tool_call_id)
        if message.tool_calls:
            turn["tool_calls"] = [
                {
                    "id": self._defused(call.id),
                    "type": "function",
                    "function": {
                        "name": self._defused(call.name),
                        "arguments": self._arguments(call.arguments_json),
                    },
                }
                for call in message.tool_calls
            ]
        return turn

    def _arguments(self, text: str) -> Any:
        try:
            return json.loads(self._defused(text))
        except ValueError:
            return self._defused(text)

    def _defused(self, text: str) -> str:
        """`text` with its control tokens broken up: short texts that a template may transform, so
        that no placeholder can stand for them."""
        if self._control is None:
            return text
        return self._control.sub(lambda hit: f"{hit[0][:1]}\u200b{hit[0][1:]}", text)

    # --- tokens ----------------------------------------------------------------------------------

    def _encode(self, pieces: list[str], contents: list[str]) -> list[int]:
        self._load_encoders()
        markup, data = self._markup_encoder, self._data_encoder
        # The first piece gets what the tokenizer puts in front of every prompt.
        ids: list[int] = list(markup.encode(pieces[0], add_special_tokens=self._adds_bos).ids)
        for text, piece in zip(contents, pieces[1:], strict=True):
            ids.extend(data.encode(text, add_special_tokens=False).ids)
            if piece:
                ids.extend(markup.encode(piece, add_special_tokens=False).ids)
        return ids

    def _load_encoders(self) -> None:
        if self._markup_encoder is not None:
            return
        try:
            import tokenizers
        except ImportError as error:
            raise PromptError(
                "a document contains control tokens of the model, and only the package "
                "`tokenizers` can encode them as text: pip install 'halo-flow[sglang]'",
                backend=self._backend,
            ) from error
        path = self._folder / "tokenizer.json"
        if not path.is_file():
            raise PromptError(
                f"{self._folder} has no tokenizer.json, which is needed to encode control tokens "
                "in documents as text",
                backend=self._backend,
            )
        whole = path.read_text("utf-8")
        self._markup_encoder = tokenizers.Tokenizer.from_str(whole)
        # The same vocabulary without the tokens that are matched before the model sees the text.
        document: dict[str, Any] = json.loads(whole)
        document["added_tokens"] = [
            t for t in document.get("added_tokens", []) if not str(t["content"]).strip()
        ]
        document["post_processor"] = None
        self._data_encoder = tokenizers.Tokenizer.from_str(json.dumps(document))


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


def _template(folder: Path, config: Mapping[str, Any]) -> str | None:
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text("utf-8")
    template: Any = config.get("chat_template")
    if isinstance(template, list):
        named = {t["name"]: t["template"] for t in cast("list[dict[str, str]]", template)}
        template = named.get("default") or next(iter(named.values()), None)
    return template if isinstance(template, str) else None


def _adds_bos(tokenizer: Mapping[str, Any]) -> bool:
    """Whether the tokenizer puts a token in front of every text by itself."""
    processor: Any = tokenizer.get("post_processor") or {}
    parts: list[Any] = processor.get("processors") or [processor]
    return any(
        part.get("type") == "TemplateProcessing"
        and part.get("single")
        and "SpecialToken" in part["single"][0]
        for part in parts
    )


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    document: Any = json.loads(path.read_text("utf-8"))
    return cast("dict[str, Any]", document)


def _token_text(token: Any) -> str:
    """A token as tokenizer_config.json has it: a text, or an object with one."""
    if isinstance(token, dict):
        return str(cast("dict[str, Any]", token).get("content", ""))
    return token if isinstance(token, str) else ""


def _raise(message: str) -> str:
    raise ValueError(message)


def _no_date(format: str) -> str:
    # A prompt that changes from day to day would share no prefix with yesterday's.
    return ""


def _to_json(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)
