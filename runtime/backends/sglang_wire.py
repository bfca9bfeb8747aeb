"""What goes to an SGLang server and what comes back: `POST /generate`, one request a call."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

from costmodel.usage import Usage
from runtime.backends.base import Request
from runtime.backends.http_errors import not_an_answer, status_error
from runtime.backends.sglang_info import NAME, ServerInfo
from runtime.errors import BackendError, TruncatedAnswerError
from runtime.fleet.admission import Load

FIRST_TOKEN_ONLY = 1 << 20
"""As a stream's interval: one event for the first token, one for the end, none between."""

_REGEX_SIGNS = re.compile(r"[\\.^$*+?{}\[\]|()/]")


@dataclass(frozen=True, slots=True)
class WireOptions:
    """What every request of a backend carries.

    Attributes:
        tenant: prefixes are cached apart for each tenant.
    """

    tenant: str = ""


def generate_payload(
    request: Request,
    prompt: str | list[int],
    rid: str,
    info: ServerInfo,
    options: WireOptions,
    *,
    stream: bool,
    max_tokens: int | None = None,
) -> dict[str, Any]:
    """The body of `POST /generate`."""
    sampling: dict[str, Any] = {
        "max_new_tokens": request.max_tokens if max_tokens is None else max_tokens,
        "temperature": request.temperature,
    }
    if request.temperature > 0:
        sampling["top_p"] = request.top_p
        if request.seed is not None and info.takes_seeds:
            sampling["sampling_seed"] = request.seed
    if request.stop:
        sampling["stop"] = list(request.stop)
    if request.options:
        sampling["regex"] = choice_regex(request.options)
    elif request.schema_json is not None:
        sampling["json_schema"] = request.schema_json
    if request.tools:
        # Models mark their calls with tokens that detokenizing would otherwise drop.
        sampling["skip_special_tokens"] = False
    payload: dict[str, Any] = {"rid": rid, "sampling_params": sampling}
    payload["text" if isinstance(prompt, str) else "input_ids"] = prompt
    if info.priorities:
        payload["priority"] = request.priority if info.low_first else -request.priority
    if request.model in info.adapters:
        payload["lora_path"] = request.model
    if options.tenant:
        payload["extra_key"] = options.tenant
    if stream:
        payload["stream"] = True
        sampling["stream_interval"] = FIRST_TOKEN_ONLY
    return payload


def choice_regex(options: tuple[str, ...]) -> str:
    """A regular expression for exactly one of `options`.

    Example:
        >>> choice_regex(("yes", "n/a?"))
        '(yes|n\\\\/a\\\\?)'
    """
    return f"({'|'.join(_REGEX_SIGNS.sub(lambda sign: chr(92) + sign[0], o) for o in options)})"


@dataclass(frozen=True, slots=True)
class Answer:
    """A finished `/generate`.

    Attributes:
        decode_s: seconds from the end of prefill to the end; None when the server does not say.
        queue_s: seconds in the server's queue; None when it does not say.
        host_cached_tokens: cached tokens that came from host memory.
    """

    text: str
    finish_reason: Literal["stop", "length"]
    usage: Usage
    decode_s: float | None
    queue_s: float | None
    host_cached_tokens: int


def read_answer(answered: Any, url: str) -> Answer | None:
    """The answer in a document of `/generate`; None while it is not finished. Raises
    `BackendError` for what the server reports as an error, and for what is no answer."""
    if not isinstance(answered, dict):
        raise not_an_answer(url, str(answered), backend=NAME)
    document = cast("dict[str, Any]", answered)
    raise_reported(document, url)
    meta: Any = document.get("meta_info")
    text: Any = document.get("text")
    if not isinstance(meta, dict) or not isinstance(text, str):
        raise not_an_answer(url, str(document), backend=NAME)
    facts = cast("dict[str, Any]", meta)
    finish: Any = facts.get("finish_reason")
    if finish is None:
        return None
    reason = cast("dict[str, Any]", finish) if isinstance(finish, dict) else {"type": finish}
    kind = reason.get("type")
    if kind == "abort":
        status = int(reason.get("status_code") or 503)
        raise status_error(status, {}, str(reason.get("message")), backend=NAME, url=url)
    if kind not in ("stop", "length"):
        raise TruncatedAnswerError(
            f"{url} ended an answer for an unknown reason: {kind!r}", backend=NAME, retryable=True
        )
    details = cast("dict[str, Any]", facts.get("cached_tokens_details") or {})
    try:
        usage = Usage(int(facts["prompt_tokens"]), int(facts["completion_tokens"]), _cached(facts))
    except (KeyError, TypeError, ValueError) as error:
        raise not_an_answer(url, str(document), backend=NAME) from error
    return Answer(
        text,
        kind,
        usage,
        _between(facts, "prefill_finished_time", "request_finished_ts"),
        _seconds(facts.get("queue_time")),
        int(details.get("host") or 0),
    )


def raise_reported(document: Mapping[str, Any], url: str) -> None:
    """Raise the error that a document reports, if it does."""
    error: Any = document.get("error")
    if error is None and document.get("object") != "error":
        return
    fields: Mapping[str, Any] = document
    if isinstance(error, dict):
        fields = cast("dict[str, Any]", error)
    code: Any = fields.get("code")
    status = int(code) if isinstance(code, int | str) and str(code).isdigit() else 500
    raise status_error(
        status,
        {},
        str(fields.get("message") or cast("object", error) or document),
        backend=NAME,
        url=url,
    )


def read_load(document: Any, url: str) -> Load:
    """The load of a server, its data-parallel ranks summed up. Reads `/v1/loads`, and `/get_load`
    as older releases answer it: with a list, before that with the number of tokens in use and
    waiting, which tells only whether there is anything. Raises `BackendError`."""
    entries: Any = document
    if isinstance(document, dict):
        fields = cast("dict[str, Any]", document)
        tokens = fields.get("load")
        if isinstance(tokens, int):
            return Load(running=min(tokens, 1), waiting=0)
        entries = fields.get("loads")
    if not isinstance(entries, list) or not entries:
        raise BackendError(f"{url} does not tell its load: {document!r:.200}", backend=NAME)
    ranks = cast("list[dict[str, Any]]", entries)
    waiting = sum(int(r.get("num_waiting_reqs") or 0) for r in ranks)
    running = sum(
        int(
            r["num_running_reqs"]
            if "num_running_reqs" in r
            else int(r.get("num_reqs") or 0) - int(r.get("num_waiting_reqs") or 0)
        )
        for r in ranks
    )
    uncached = [r.get("num_waiting_uncached_tokens") for r in ranks]
    return Load(
        running=running,
        waiting=waiting,
        waiting_tokens=None if None in uncached else sum(int(t or 0) for t in uncached),
        cache_usage=max(float(r.get("token_usage") or 0) for r in ranks),
        cache_hit_rate=max(float(r.get("cache_hit_rate") or 0) for r in ranks),
    )


def _cached(facts: Mapping[str, Any]) -> int | None:
    cached = facts.get("cached_tokens")
    return None if cached is None else int(cached)


def _between(facts: Mapping[str, Any], start: str, end: str) -> float | None:
    first, last = _seconds(facts.get(start)), _seconds(facts.get(end))
    return max(0.0, last - first) if first and last else None


def _seconds(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) else None
