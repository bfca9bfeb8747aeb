"""Prompts for servers that tokenize: text, or token ids where text would not do.

Contents are data: the template is rendered with a placeholder for each, and what stands between the
placeholders is the model's markup. Data that contains none of the tokenizer's own tokens is spliced
in as text, which the engine tokenizes. Data that does is encoded here, with those tokens switched
off, so it can never become a control token; the engine then gets token ids.
"""

from __future__ import annotations

import json
import re
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from costmodel.tokens import BYTES_PER_TOKEN
from runtime.backends.base import Request
from runtime.chat.sandbox import SandboxedTemplate, TemplateRefusedError
from runtime.chat.tokenizer_files import adds_bos, chat_template_of, token_text
from runtime.chat.turns import offer_of, turn_of
from runtime.errors import PromptError

_TOKEN_NAMES = ("bos_token", "eos_token", "pad_token")
_MARK_BEGIN = "\ue0f0"
_MARK = "\ue0f0{}\ue0f1"
_MARKS = re.compile("\ue0f0([0-9]+)\ue0f1")
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
        source = chat_template_of(folder, config)
        if source is None:
            raise PromptError(
                f"{folder} has no chat template (chat_template.jinja, or chat_template in "
                "tokenizer_config.json); this model cannot hold a conversation",
                backend=backend,
            )
        names = {name: token_text(config.get(name)) for name in _TOKEN_NAMES}
        self._template = SandboxedTemplate(source, {**names, "enable_thinking": False}, _no_date)
        self._bos = names["bos_token"]
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
        self._adds_bos = bool(adds_bos(tokenizer) and self._bos)
        self._skeletons: dict[Any, list[str]] = {}
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
        return self._template.takes_tools

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
        turns = [
            # An empty content needs no placeholder, and templates test for it.
            turn_of(message, _MARK.format(i) if message.content else "", self._defused)
            for i, message in enumerate(request.messages)
        ]
        try:
            text = self._template.render(
                turns, [offer_of(tool, self._defused) for tool in request.tools]
            )
        except TemplateRefusedError as error:
            raise PromptError(
                f"the chat template of {self._folder} {error}", backend=self._backend
            ) from error
        if self._adds_bos and text.startswith(self._bos):
            text = text[len(self._bos) :]  # the tokenizer puts it there by itself
        return text

    def _defused(self, text: str) -> str:
        """`text` with its control tokens and what looks like a placeholder broken up: short texts
        that a template may transform, so that no placeholder can stand for them."""
        text = text.replace(_MARK_BEGIN, f"{_MARK_BEGIN}\u200b")
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


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    document: Any = json.loads(path.read_text("utf-8"))
    return cast("dict[str, Any]", document)


def _no_date(format: str) -> str:
    # A prompt that changes from day to day would share no prefix with yesterday's.
    return ""
