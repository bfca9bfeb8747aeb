"""Texts to tokens and back, from a model's own files.

Prompts come as pieces (`runtime.chat.template`): control tokens are recognised within a
piece, and data that spells one has been cut into two, so it stays data.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, cast

from runtime.backends.torch_engine.errors import bad_file
from runtime.chat.template import PLAIN_TEMPLATE, ChatTemplate
from runtime.chat.tokenizer_files import chat_template_of, token_text
from runtime.models.gguf_file import GgufHeader

_PRE_TOKENIZERS = {
    # name in GGUF: the pattern of its words; digits that stand alone are in it
    "qwen2": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "llama-bpe": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
}


class Tokenizer:
    """A model's tokenizer, its chat template and the tokens that end an answer.

    Args:
        backend: a `tokenizers.Tokenizer`.
        stop_ids: the first is the one that grammars end with.
    """

    def __init__(self, backend: Any, template: ChatTemplate, stop_ids: Sequence[int]) -> None:
        self._backend = backend
        self.template = template
        self.stop_ids = frozenset(stop_ids)
        self.end_id = stop_ids[0]

    def encode(self, pieces: Iterable[str]) -> list[int]:
        """Tokens of the pieces, one after the other."""
        ids: list[int] = []
        for piece in pieces:
            ids.extend(self._backend.encode(piece, add_special_tokens=False).ids)
        return ids

    def encode_answer(self, text: str) -> list[int]:
        """Tokens of `text` as a model would write it: nothing in it is a control token."""
        breaks = [0, *self.template.breaks_of(text), len(text)]
        return self.encode(text[a:b] for a, b in itertools.pairwise(breaks) if a < b)

    def decode(self, ids: Sequence[int]) -> str:
        return cast("str", self._backend.decode(list(ids), skip_special_tokens=True))

    def stream(self) -> TokenStream:
        """A decoder for one answer."""
        return TokenStream(self._backend)

    def to_json(self) -> str:
        """As the `tokenizers` library saves it."""
        return cast("str", self._backend.to_str())


class TokenStream:
    """Text as soon as its bytes are whole."""

    def __init__(self, backend: Any) -> None:
        from tokenizers.decoders import DecodeStream

        self._backend = backend
        self._stream = DecodeStream(skip_special_tokens=True)
        self._ids: list[int] = []
        self._told = 0

    def push(self, token: int) -> str:
        """The text that `token` completes, perhaps none."""
        self._ids.append(token)
        text = self._stream.step(self._backend, token) or ""
        self._told += len(text)
        return text

    def rest(self) -> str:
        """What is left at the end: bytes that make no character, as replacement characters."""
        whole = cast("str", self._backend.decode(self._ids, skip_special_tokens=True))
        return whole[self._told :]


def gguf_tokenizer(header: GgufHeader) -> Tokenizer:
    """The byte-level BPE tokenizer inside a GGUF file."""
    from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers
    from tokenizers import Tokenizer as Backend

    meta, path = header.metadata, header.path
    kind, pre = meta.get("tokenizer.ggml.model"), meta.get("tokenizer.ggml.pre") or "gpt-2"
    if kind != "gpt2" or pre not in (*_PRE_TOKENIZERS, "smollm", "gpt-2"):
        raise bad_file(
            f"{path}: tokenizer {kind!r} with words split as {pre!r}; the torch engine reads "
            f"byte-level BPE ('gpt2') split as {', '.join((*_PRE_TOKENIZERS, 'smollm', 'gpt-2'))}"
        )
    tokens, merges = header.tokens, meta.get("tokenizer.ggml.merges")
    if not isinstance(merges, list) or not tokens:
        raise bad_file(f"{path}: the tokenizer has no vocabulary or no merges")
    pairs = [tuple(m.split(" ", 1)) for m in cast("list[str]", merges)]
    try:
        backend = Backend(
            models.BPE(
                vocab={t: i for i, t in enumerate(tokens)},
                merges=cast("Any", pairs),
                ignore_merges=pre == "llama-bpe",
            )
        )
    except Exception as error:  # the library raises its errors as plain exceptions
        raise bad_file(f"{path}: the tokenizer cannot be built: {error}") from error
    if pre == "smollm":
        digits = pre_tokenizers.Digits(individual_digits=True)
        split = [digits, pre_tokenizers.ByteLevel(add_prefix_space=False)]
    elif pre == "gpt-2":
        split = [pre_tokenizers.ByteLevel(add_prefix_space=False)]
    else:
        words = pre_tokenizers.Split(Regex(_PRE_TOKENIZERS[pre]), "isolated")
        split = [words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    backend.pre_tokenizer = pre_tokenizers.Sequence(cast("Any", split))
    backend.decoder = decoders.ByteLevel()
    special = header.special_tokens
    cast("Any", backend).add_special_tokens(
        [AddedToken(t, special=True, normalized=False) for t in special]
    )
    names = ("eos_token_id", "eot_token_id", "eom_token_id")
    stops = [meta.get(f"tokenizer.ggml.{n}") for n in names]
    stop_ids = [s for s in stops if isinstance(s, int)]
    if not stop_ids:
        raise bad_file(f"{path}: no end-of-text token is named")

    def text_of(name: str) -> str:
        token = meta.get(f"tokenizer.ggml.{name}")
        return tokens[token] if isinstance(token, int) and token < len(tokens) else ""

    template = ChatTemplate(
        header.chat_template or PLAIN_TEMPLATE,
        special,
        bos_token=text_of("bos_token_id"),
        eos_token=text_of("eos_token_id"),
        now=_no_date,
    )
    return Tokenizer(backend, template, stop_ids)


def directory_tokenizer(directory: Path) -> Tokenizer:
    """The tokenizer of a Hugging Face checkpoint: `tokenizer.json` and what stands beside it."""
    from tokenizers import Tokenizer as Backend

    path = directory / "tokenizer.json"
    try:
        backend = Backend.from_file(str(path))
    except Exception as error:  # the library raises its errors as plain exceptions
        raise bad_file(f"{path}: no readable tokenizer: {error}") from error
    config = _json(directory / "tokenizer_config.json")
    generation = _json(directory / "generation_config.json")
    eos = generation.get("eos_token_id", _json(directory / "config.json").get("eos_token_id"))
    eos_text = token_text(config.get("eos_token"))
    ids = cast("list[object]", eos if isinstance(eos, list) else [eos])
    stop_ids = [i for i in ids if isinstance(i, int)]
    token = backend.token_to_id(eos_text) if eos_text else None
    if token is not None:
        stop_ids = [token, *(i for i in stop_ids if i != token)]
    if not stop_ids:
        raise bad_file(
            f"{directory}: no end-of-text token in generation_config.json, config.json or "
            "tokenizer_config.json"
        )
    special = [t.content for t in backend.get_added_tokens_decoder().values()]
    template = ChatTemplate(
        chat_template_of(directory, config) or PLAIN_TEMPLATE,
        special,
        bos_token=token_text(config.get("bos_token")),
        eos_token=eos_text,
        now=_no_date,
    )
    return Tokenizer(backend, template, stop_ids)


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise bad_file(f"{path}: {error}") from error
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def _no_date() -> datetime:
    """What templates that print the date get: a fixed one, so that answers can be repeated."""
    return datetime(2024, 7, 26)  # noqa: DTZ001 - Llama 3.1's own default
