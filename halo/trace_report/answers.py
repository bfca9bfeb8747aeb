"""What a tool's answer reports: a failure, nothing, or content."""

from __future__ import annotations

import re

from halo.trace_report.hints import Hints
from halo.traces.record import Message

_FAILURE = re.compile(
    r"(?:^|\n)\s*(?:Traceback \(most recent call last\)|\w*(?:Error|Exception)\b\s*[:(]|"
    r"(?:error|fatal|failed|unknown action|exception)\b\s*[:!])"
    r"|command not found|No such file or directory|Permission denied|"
    r"\b(?:status|code|HTTP)[ :=]+(?:4\d\d|5\d\d)\b",
    re.IGNORECASE,
)
_PRIORS = re.compile(
    r"\b(SyntaxError|IndentationError|TabError|NameError|ImportError|ModuleNotFoundError|"
    r"UnboundLocalError)\b|command not found|syntax error near unexpected token|"
    r"unexpected EOF while looking for|is not recognized as an internal or external command"
)
_NOTHING = re.compile(r"^\s*(?:\(?no output\)?|none|null|\[\]|\{\}|''|\"\"|<empty>)?\s*$", re.I)
# The expressions are slow on long texts; a text without any of these words has no match.
_FAILURE_HINTS = Hints(
    "error",
    "exception",
    "traceback",
    "fatal",
    "failed",
    "unknown action",
    "not found",
    "no such file",
    "permission denied",
    "status",
    "code",
    "http",
)
_PRIORS_HINTS = ("Error", "command not found", "unexpected", "is not recognized")


def _has_failure(text: str) -> bool:
    return _FAILURE_HINTS.any_in(text) and bool(_FAILURE.search(text))


def is_failure(answer: Message) -> bool:
    """Whether an answer reports a failure: by the trace's own flag, else by its text."""
    if answer.is_error is not None:
        return answer.is_error or priors_failure(answer) is not None
    if answer.exit_code not in (None, 0):
        # grep, diff and test say "no" with code 1
        return answer.exit_code != 1 or _has_failure(answer.text[:4000])
    return len(answer.text) < 20_000 and _has_failure(answer.text[:4000])


def is_nothing(text: str) -> bool:
    """Whether an answer has no content."""
    return len(text) < 32 and bool(_NOTHING.match(text))


def priors_failure(answer: Message) -> re.Match[str] | None:
    """A failure that knowing the tool would have avoided."""
    head = answer.text[:8000]
    if not any(hint in head for hint in _PRIORS_HINTS):
        return None
    return _PRIORS.search(head)
