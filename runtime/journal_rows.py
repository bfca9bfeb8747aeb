"""Records as rows of the journal's tables, and back. Column order is that of the `..._FIELDS` of
`runtime.journal_schema`."""

from __future__ import annotations

import json
import re
from typing import Any, TypeAlias

from costmodel.usage import OpMetrics, Usage
from runtime.errors import ValueTypeError
from runtime.records import CallRecord, Outcome, RowError

Row: TypeAlias = "tuple[Any, ...]"


def call_row(process: int, call: CallRecord) -> Row:
    """A row of `calls` or `failed_calls`. Raises `ValueTypeError` when the value is not JSON."""
    usage = call.usage
    return (
        call.key,
        process,
        call.kind,
        call.name,
        call.op,
        call.query,
        call.row_key,
        call.path,
        call.turn,
        call.effect,
        _exact_json(call),
        usage.input_tokens,
        usage.output_tokens,
        usage.cached_tokens,
        usage.predicted_cached_tokens,
        call.finish_reason,
        call.queued_s,
        call.start_s,
        call.first_token_s,
        call.end_s,
        call.attempts,
        None if call.error is None else _storable(call.error),
    )


def call_from_row(row: Row) -> CallRecord:
    """The record of a row of CALL_FIELDS."""
    return CallRecord(
        key=row[0],
        kind=row[2],
        name=row[3],
        op=row[4],
        query=row[5],
        row_key=row[6],
        path=row[7],
        turn=row[8],
        effect=row[9],
        value=json.loads(row[10]),
        usage=Usage(row[11], row[12], row[13], row[14]),
        finish_reason=row[15],
        queued_s=row[16],
        start_s=row[17],
        first_token_s=row[18],
        end_s=row[19],
        attempts=row[20],
        error=row[21],
    )


def outcome_row(process: int, outcome: Outcome) -> Row:
    """A row of `outcomes`. A value that is not JSON (NaN, nested too deep) becomes a failed row:
    the row has ended, and its results could not be read by anybody."""
    error = outcome.error
    value = "null"
    if error is None:
        try:
            value = _storable(_json(outcome.value))
        except (TypeError, ValueError, RecursionError) as problem:
            message = (
                f"the value of row {outcome.row_index} of {outcome.query!r} cannot be written as "
                f"JSON: {problem}"
            )
            error = RowError("ValueTypeError", message)
    place = (outcome.query, outcome.row_key, outcome.row_index, process, value)
    if error is None:
        return (*place, None, None, None, int(outcome.dropped))
    return (*place, error.type, _storable(error.message), _storable(error.op), 0)


def outcome_from_row(row: Row) -> Outcome:
    """The outcome of a row of OUTCOME_FIELDS."""
    if row[5] is not None:
        return Outcome(row[0], row[2], row[1], None, RowError(row[5], row[6], row[7]))
    return Outcome(row[0], row[2], row[1], json.loads(row[4]), dropped=bool(row[8]))


def metrics_row(process: int, op: str, metrics: OpMetrics) -> Row:
    """A row of `metrics`."""
    usage = metrics.usage
    return (
        process,
        op,
        metrics.requested,
        metrics.made,
        metrics.shared,
        metrics.replayed,
        metrics.retries,
        metrics.errors,
        metrics.kept,
        metrics.busy_s,
        usage.input_tokens,
        usage.output_tokens,
        usage.cached_tokens,
        usage.predicted_cached_tokens,
    )


# Made once: `json.dumps` with these arguments would make an encoder for each value.
_json = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode
_ascii_json = json.JSONEncoder(allow_nan=False, separators=(",", ":")).encode


def _exact_json(call: CallRecord) -> str:
    """JSON text that reads back as the equal value, lone surrogates included: a replayed call must
    answer what the call answered."""
    try:
        text = _json(call.value)
        if text.isascii():
            return text
        try:
            text.encode()
        except UnicodeEncodeError:
            return _ascii_json(call.value)
        return text
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueTypeError(
            f"the answer of {call.kind} {call.name!r} cannot be recorded as JSON: {error}"
        ) from error


_SURROGATES = re.compile("[\ud800-\udfff]")


def _storable(text: str) -> str:
    """Text that is valid Unicode: half a surrogate pair becomes the replacement character."""
    return text if text.isascii() else _SURROGATES.sub("\ufffd", text)
