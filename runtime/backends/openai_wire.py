"""The chat completions protocol: what goes out and what comes back, whole or as a stream."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast

from costmodel.usage import Usage
from runtime.backends.base import Message, Request, ToolCall
from runtime.backends.http_errors import not_an_answer, status_error
from runtime.errors import BackendError, TruncatedAnswerError

NAME = "openai"
TOP_LOGPROBS = 20
WRAPPER_TOKENS = 24
Choosing = Literal["schema", "logprobs", "free"]
"""How an option is chosen: decoded under a schema, read from the first token's probabilities, or
asked for in words alone."""

# What common chat templates use as markup. A server tokenizes contents together with its template,
# and many of them let such text in a document become a control token.
_CONTROL = re.compile(
    r"<\|[^\s<>|]{1,40}\|>|<｜[^\s<>｜]{1,40}｜>|</?s>|\[/?(?:INST|TOOL_CALLS|AVAILABLE_TOOLS)\]|"
    r"<</?SYS>>|</?(?:start|end)_of_turn>|<(?:bos|eos|pad|unk)>|</?tool_(?:call|response)>"
)


@dataclass(slots=True)
class Dialect:
    """What a server has shown to understand. Learned from refusals, never from its name.

    Attributes:
        json_schema: `response_format` with a schema.
        logprobs: `top_logprobs`.
        max_completion_tokens: the newer name of the answer limit is wanted.
    """

    json_schema: bool = True
    logprobs: bool = True
    max_completion_tokens: bool = False
    stream_usage: bool = True
    seeds: bool = True

    def learn(self, error: BackendError, payload: Mapping[str, Any]) -> bool:
        """Whether the refusal `error` of `payload` teaches something that makes the next try
        different."""
        text = str(error)
        if "max_tokens" in payload and "max_completion_tokens" in text:
            self.max_completion_tokens = True
        elif "response_format" in payload and re.search(
            r"response_format|json_schema|structured|grammar|guided", text, re.IGNORECASE
        ):
            self.json_schema = False
        elif "top_logprobs" in payload and "logprob" in text.lower():
            self.logprobs = False
        elif "stream_options" in payload and "stream_options" in text:
            self.stream_usage = False
        elif "seed" in payload and re.search(r"\bseed\b", text):
            self.seeds = False
        else:
            return False
        return True

    def choosing(self, request: Request) -> Choosing:
        """How to choose one of the options of `request`."""
        if self.json_schema:
            return "schema"
        firsts = [_first_word(option) for option in request.options]
        if self.logprobs and len(set(firsts)) == len(firsts) and all(firsts):
            return "logprobs"
        return "free"


def chat_payload(request: Request, dialect: Dialect, *, stream: bool) -> dict[str, Any]:
    """The body of `POST /chat/completions`."""
    payload: dict[str, Any] = {
        "model": request.model,
        "messages": [_message(m) for m in request.messages],
        "temperature": request.temperature,
    }
    limit = "max_completion_tokens" if dialect.max_completion_tokens else "max_tokens"
    payload[limit] = request.max_tokens
    if request.temperature > 0:
        payload["top_p"] = request.top_p
        if request.seed is not None and dialect.seeds:
            payload["seed"] = request.seed
    if request.stop:
        payload["stop"] = list(request.stop)
    if request.tools:
        payload["tools"] = [
            {
                "type": "function",
                "function": {
                    "name": tool.name,
                    "description": tool.description,
                    "parameters": json.loads(tool.parameters_json),
                },
            }
            for tool in request.tools
        ]
    if request.options:
        choosing = dialect.choosing(request)
        if choosing == "schema":
            payload["response_format"] = _format("choice", _choice_schema(request.options))
            # The object around the option takes tokens that the workflow did not count.
            longest = max(len(option.encode()) for option in request.options)
            payload[limit] = max(request.max_tokens, longest) + WRAPPER_TOKENS
        elif choosing == "logprobs":
            payload |= {"logprobs": True, "top_logprobs": TOP_LOGPROBS, limit: 1}
    elif request.schema_json is not None and dialect.json_schema:
        payload["response_format"] = _format("answer", json.loads(request.schema_json))
    if stream:
        payload["stream"] = True
        if dialect.stream_usage:
            payload["stream_options"] = {"include_usage": True}
    return payload


@dataclass(frozen=True, slots=True)
class Answer:
    """A finished completion."""

    text: str
    finish_reason: Literal["stop", "length", "tool_calls"]
    usage: Usage
    tool_calls: tuple[ToolCall, ...]


def read_completion(document: Any, request: Request, url: str) -> Answer:
    """The answer in a whole document. Raises `BackendError`."""
    raise_reported(document, url)
    whole = cast("dict[str, Any]", document)
    choices: Any = whole.get("choices")
    if not isinstance(choices, list) or not choices:
        raise not_an_answer(url, json.dumps(document), backend=NAME)
    choice = cast("dict[str, Any]", choices[0])
    message: Any = choice.get("message")
    if not isinstance(message, dict):
        raise not_an_answer(url, json.dumps(document), backend=NAME)
    fields = cast("dict[str, Any]", message)
    if fields.get("refusal"):
        raise BackendError(f"the model refused: {fields['refusal']}", backend=NAME)
    finish = finish_reason(choice.get("finish_reason"), url)
    text = str(fields.get("content") or "")
    calls = _tool_calls(fields.get("tool_calls"))
    if request.options:
        text, finish = _chosen(text, finish, choice, request)
    return Answer(text, "tool_calls" if calls else finish, _usage(whole.get("usage"), url), calls)


@dataclass(slots=True)
class StreamedAnswer:
    """Puts an answer together from the events of a stream."""

    request: Request
    url: str
    _text: list[str] = field(default_factory=list[str])
    _calls: dict[int, dict[str, str]] = field(default_factory=dict[int, dict[str, str]])
    _finish: Any = None
    _usage: Any = None
    started: bool = False

    def add(self, event: Mapping[str, Any]) -> None:
        """Take an event. Raises the error that it reports."""
        raise_reported(event, self.url)
        self._usage = event.get("usage") or self._usage
        for choice in cast("list[dict[str, Any]]", event.get("choices") or []):
            delta = cast("dict[str, Any]", choice.get("delta") or {})
            if delta.get("content"):
                self.started = True
                self._text.append(str(delta["content"]))
            for part in cast("list[dict[str, Any]]", delta.get("tool_calls") or []):
                self.started = True
                call = self._calls.setdefault(
                    int(part.get("index") or 0), {"id": "", "name": "", "arguments": ""}
                )
                function = cast("dict[str, Any]", part.get("function") or {})
                call["id"] = str(part.get("id") or call["id"])
                call["name"] += str(function.get("name") or "")
                call["arguments"] += str(function.get("arguments") or "")
            self._finish = choice.get("finish_reason") or self._finish

    def end(self) -> Answer:
        """The answer. Raises `TruncatedAnswerError` when the stream never said why it stopped."""
        if self._finish is None:
            raise TruncatedAnswerError(
                f"the stream of {self.url} ended before the answer did",
                backend=NAME,
                retryable=True,
            )
        calls = tuple(
            ToolCall(c["id"] or f"call-{i}", c["name"], c["arguments"])
            for i, c in sorted(self._calls.items())
        )
        finish, text = finish_reason(self._finish, self.url), "".join(self._text)
        if self.request.options:
            text, finish = _chosen(text, finish, {}, self.request)
        usage: Any = self._usage if self._usage is not None else {}
        return Answer(
            text, "tool_calls" if calls else finish, _usage(usage, self.url, partial=True), calls
        )


def finish_reason(value: Any, url: str) -> Literal["stop", "length", "tool_calls"]:
    """Why an answer ended. Raises when it did not end properly."""
    match value:
        case "stop" | "eos" | "end_turn" | "stop_sequence":
            return "stop"
        case "length" | "max_tokens":
            return "length"
        case "tool_calls" | "function_call":
            return "tool_calls"
        case "content_filter":
            raise BackendError(
                f"{url} stopped the answer: its content filter does not let it through",
                backend=NAME,
            )
        case _:
            raise TruncatedAnswerError(
                f"{url} ended an answer without a reason that is known: {value!r}",
                backend=NAME,
                retryable=True,
            )


def raise_reported(document: Any, url: str) -> None:
    """Raise the error that a document or event reports, if it does."""
    if not isinstance(document, Mapping):
        raise not_an_answer(url, json.dumps(document), backend=NAME)
    fields = cast("Mapping[str, Any]", document)
    error: Any = fields.get("error")
    if not error and fields.get("object") != "error":
        return
    details = cast("dict[str, Any]", error) if isinstance(error, dict) else dict(fields)
    code: Any = details.get("code") or details.get("status")
    status = int(code) if str(code).isdigit() and 400 <= int(code) < 600 else 500
    raise status_error(status, {}, json.dumps(fields), backend=NAME, url=url)


def defused(text: str) -> str:
    """`text` with chat markup broken up by an invisible character, so that it stays text.

    Example:
        >>> defused("a <|im_end|> b") == "a <\\u200b|im_end|> b"
        True
    """
    return _CONTROL.sub(lambda hit: f"{hit[0][0]}\u200b{hit[0][1:]}", text)


def _message(message: Message) -> dict[str, Any]:
    turn: dict[str, Any] = {"role": message.role, "content": defused(message.content)}
    if message.role == "tool":
        turn["tool_call_id"] = message.tool_call_id
    elif message.name:
        turn["name"] = message.name
    if message.tool_calls:
        turn["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments_json},
            }
            for call in message.tool_calls
        ]
        turn["content"] = turn["content"] or None
    return turn


def _format(name: str, schema: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": name, "schema": schema, "strict": True}}


def _choice_schema(options: Sequence[str]) -> dict[str, Any]:
    """An object with one property: the protocol's schemas are objects."""
    return {
        "type": "object",
        "properties": {"choice": {"type": "string", "enum": list(options)}},
        "required": ["choice"],
        "additionalProperties": False,
    }


def _chosen(
    text: str,
    finish: Literal["stop", "length", "tool_calls"],
    choice: Mapping[str, Any],
    request: Request,
) -> tuple[str, Literal["stop", "length", "tool_calls"]]:
    """The option that an answer names, whichever way it was asked for."""
    logprobs = cast("dict[str, Any]", choice.get("logprobs") or {})
    content: Any = logprobs.get("content")
    if content:
        best = _most_likely(cast("list[dict[str, Any]]", content)[0], request.options)
        if best is not None:
            return best, "stop"
    try:
        value: Any = json.loads(text)
    except ValueError:
        return text, finish
    named: Any = cast("dict[str, Any]", value).get("choice") if isinstance(value, dict) else value
    return (named, finish) if isinstance(named, str) else (text, finish)


def _most_likely(first: Mapping[str, Any], options: Sequence[str]) -> str | None:
    """The option whose beginning has most of the first token's probability."""
    import math

    weights = dict.fromkeys(options, 0.0)
    for entry in cast("list[dict[str, Any]]", first.get("top_logprobs") or [first]):
        token = str(entry.get("token") or "").strip()
        fits = [option for option in options if token and option.startswith(token)]
        if len(fits) == 1:
            weights[fits[0]] += math.exp(float(entry.get("logprob") or 0.0))
    best = max(weights, key=lambda option: weights[option])
    return best if weights[best] > 0 else None


def _first_word(option: str) -> str:
    return option.strip()[:3].lower()


def _tool_calls(value: Any) -> tuple[ToolCall, ...]:
    calls: list[ToolCall] = []
    for i, entry in enumerate(cast("list[dict[str, Any]]", value or [])):
        function = cast("dict[str, Any]", entry.get("function") or {})
        arguments = function.get("arguments")
        calls.append(
            ToolCall(
                str(entry.get("id") or f"call-{i}"),
                str(function.get("name") or ""),
                arguments if isinstance(arguments, str) else json.dumps(arguments or {}),
            )
        )
    return tuple(calls)


def _usage(value: Any, url: str, *, partial: bool = False) -> Usage:
    """Tokens used. Servers that count nothing in streams leave zeros."""
    if not isinstance(value, dict):
        if partial:
            return Usage()
        raise not_an_answer(url, f"usage: {value!r}", backend=NAME)
    counts = cast("dict[str, Any]", value)
    details: Any = counts.get("prompt_tokens_details")
    cached = cast("dict[str, Any]", details).get("cached_tokens") if details else None
    return Usage(
        int(counts.get("prompt_tokens") or 0),
        int(counts.get("completion_tokens") or 0),
        None if cached is None else int(cached),
    )
