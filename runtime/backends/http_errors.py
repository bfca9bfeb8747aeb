"""What an HTTP engine's failure means: one table from status, headers and body to `BackendError`.

Engines behind HTTP share it. The question is always the same: can asking again help, and when?
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, cast

from runtime.clock import utc_now
from runtime.errors import (
    BackendError,
    ContextOverflowError,
    EngineUnreachableError,
    ModelNotFoundError,
)

RETRYABLE_STATUSES = frozenset((408, 409, 425, 429, 499, 500, 502, 503, 504, 507, 529))
"""Timeouts, limits and servers in trouble. 501 and 505 are not: the server will never do it."""

SHOWN_CHARS = 400
MAX_RETRY_AFTER_S = 3600.0

_OVERFLOW = re.compile(
    r"longer than the model'?s? context|maximum context length|context[_ ]length[_ ]exceeded|"
    r"exceeds? the (available )?context|exceed(s|ed)? (the )?context (size|window|length)|"
    r"exceed_context_size|prompt is too long|input is too long|"
    r"longer than the maximum model length",
    re.IGNORECASE,
)
_NO_MODEL = re.compile(
    r"model_not_found|model .{0,200}(does not exist|not found|is not available)|unknown model",
    re.IGNORECASE | re.DOTALL,
)


def status_error(
    status: int,
    headers: Mapping[str, str],
    body: str,
    *,
    backend: str,
    url: str,
    now: datetime | None = None,
) -> BackendError:
    """The error of an answer whose status is not 200. `now` is the time that a Retry-After date is
    compared with; by default the server's own `Date` header, so that clocks need not agree."""
    error = _meaning(status, headers, body, backend=backend, url=url, now=now)
    error.status = status
    return error


def _meaning(
    status: int,
    headers: Mapping[str, str],
    body: str,
    *,
    backend: str,
    url: str,
    now: datetime | None,
) -> BackendError:
    message = error_message(body)
    if status in (400, 413, 422) and _OVERFLOW.search(message):
        return ContextOverflowError(
            f"{url} refused the prompt: {message}; shorten the prompt, lower max_tokens or split "
            "the document",
            backend=backend,
        )
    if status in (400, 404) and _NO_MODEL.search(message):
        return ModelNotFoundError(f"{url}: {message}", backend=backend)
    if status == 404:
        return BackendError(
            f"{url} answered 404: there is no such route; is this the address of an engine of "
            f"this kind? {message}",
            backend=backend,
        )
    if status in (401, 403):
        return BackendError(
            f"{url} refused access ({status}): {message}; set the key with HALO_API_KEY",
            backend=backend,
        )
    retryable = status in RETRYABLE_STATUSES
    error = BackendError(
        f"{url} answered {status}: {message}", backend=backend, retryable=retryable
    )
    if retryable:
        error.retry_after_s = retry_after_s(headers, now)
    return error


def error_message(body: str) -> str:
    """What a body says went wrong: the message in the common JSON shapes, or its first words."""
    text = body.strip()
    try:
        document: Any = json.loads(text)
    except ValueError:
        return _one_line(re.sub(r"<[^>]*>", " ", text)) or "an empty body"
    while isinstance(document, dict):
        fields = cast("dict[str, Any]", document)
        inner = next(
            (fields[k] for k in ("error", "message", "detail", "object") if fields.get(k)), None
        )
        if inner is None:
            break
        code = fields.get("code") or fields.get("type")
        if isinstance(inner, str) and isinstance(code, str):
            return _one_line(f"{inner} ({code})")
        document = inner
    return _one_line(document if isinstance(document, str) else json.dumps(document))


def retry_after_s(headers: Mapping[str, str], now: datetime | None = None) -> float | None:
    """Seconds that the server asks to be left alone: `Retry-After` as a number or an HTTP date, or
    `retry-after-ms`. None when it does not say, or says nonsense.

    Example:
        >>> retry_after_s({"Retry-After": "2.5"})
        2.5
        >>> retry_after_s(
        ...     {
        ...         "Retry-After": "Fri, 01 Jan 2027 00:00:10 GMT",
        ...         "Date": "Fri, 01 Jan 2027 00:00:00 GMT",
        ...     }
        ... )
        10.0
    """
    lowered = {name.lower(): value for name, value in headers.items()}
    milliseconds = _number(lowered.get("retry-after-ms"))
    if milliseconds is not None:
        return min(MAX_RETRY_AFTER_S, milliseconds / 1000)
    value = lowered.get("retry-after")
    seconds = _number(value)
    if seconds is None and value is not None:
        when = _date(value)
        now = now or _date(lowered.get("date", "")) or datetime.fromisoformat(utc_now())
        if when is not None:
            # Dates have whole seconds, so "now" may be up to one second behind.
            seconds = max(0.0, (when - now).total_seconds())
    return None if seconds is None else min(MAX_RETRY_AFTER_S, seconds)


def unreachable(url: str, error: BaseException, *, backend: str) -> EngineUnreachableError:
    """The error of a connection that could not be made or broke."""
    what = str(error) or type(error).__name__
    return EngineUnreachableError(
        f"no answer from {url}: {what}; is the server up? `halo doctor` checks the address",
        backend=backend,
        retryable=True,
    )


def not_an_answer(url: str, body: str, *, backend: str) -> BackendError:
    """The error of a 200 whose body is not what the route promises: a proxy's page, garbage."""
    shown = _one_line(body) or "an empty body"
    return BackendError(
        f"{url} answered 200, but not with an answer: {shown}", backend=backend, retryable=True
    )


def _number(value: str | None) -> float | None:
    try:
        number = float(value) if value is not None else None
    except ValueError:
        return None
    return number if number is not None and 0 <= number < float("inf") else None


def _date(value: str) -> datetime | None:
    try:
        when = parsedate_to_datetime(value)
    except (ValueError, TypeError):
        return None
    return when if when.tzinfo is not None else when.replace(tzinfo=UTC)


def _one_line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= SHOWN_CHARS else f"{line[:SHOWN_CHARS]}..."
