"""The table from HTTP answers to errors: whose fault, can trying again help, and when."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.backends.event_stream import EventReader
from runtime.backends.http_errors import error_message, retry_after_s, status_error
from runtime.errors import BackendError, ContextOverflowError, ModelNotFoundError

URL = "http://e/x"
NOW = datetime(2027, 1, 1, 12, 0, 0, tzinfo=UTC)


def mapped(status: int, body: str = "", **headers: str) -> BackendError:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return status_error(status, named, body, backend="b", url=URL, now=NOW)


@pytest.mark.parametrize("status", [408, 409, 425, 429, 500, 502, 503, 504, 529])
def test_trouble_of_the_server_can_be_tried_again(status: int) -> None:
    error = mapped(status, "busy")
    assert error.retryable and error.status == status and "busy" in str(error)


@pytest.mark.parametrize("status", [301, 400, 401, 403, 404, 405, 413, 422, 501])
def test_what_is_refused_for_good_is_not_tried_again(status: int) -> None:
    assert not mapped(status, "no").retryable


OVERFLOWS = [
    "The input (9 tokens) is longer than the model's context length (8 tokens).",
    "Requested token count exceeds the model's maximum context length of 8 tokens.",
    '{"error": {"code": "context_length_exceeded", "message": "too long"}}',
    '{"error": {"type": "exceed_context_size_error", "message": "the request exceeds the '
    'available context size"}}',
    '{"object": "error", "message": "This model\'s maximum context length is 8 tokens."}',
]


@pytest.mark.parametrize("body", OVERFLOWS)
def test_a_prompt_that_is_too_long_has_a_type_of_its_own(body: str) -> None:
    error = mapped(400, body)
    assert isinstance(error, ContextOverflowError) and not error.retryable


def test_a_model_that_is_not_there_has_one_too() -> None:
    body = '{"error": {"message": "The model `x` does not exist", "code": "model_not_found"}}'
    assert isinstance(mapped(404, body), ModelNotFoundError)
    assert not isinstance(mapped(404, "Not Found"), ModelNotFoundError)


def test_the_key_is_named_when_access_is_refused() -> None:
    assert "HALO_API_KEY" in str(mapped(401, "bad key"))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ('{"error": {"message": "a"}}', "a"),
        ('{"error": "b"}', "b"),
        ('{"detail": "c"}', "c"),
        ('{"object": "error", "message": "d", "code": 400}', "d"),
        ('{"error": {"message": "e", "code": "bad"}}', "e (bad)"),
        ("<html><h1>Bad</h1> gateway</html>", "Bad gateway"),
        ("", "an empty body"),
        ("[1]", "[1]"),
    ],
)
def test_the_message_is_found_in_every_common_shape(body: str, message: str) -> None:
    assert error_message(body) == message


def test_a_long_body_is_cut() -> None:
    assert len(error_message("x" * 10_000)) < 500


@given(st.integers(0, 3000))
def test_seconds_and_dates_mean_the_same_pause(seconds: int) -> None:
    date = format_datetime(NOW + timedelta(seconds=seconds), usegmt=True)
    assert mapped(429, Retry_After=str(seconds)).retry_after_s == seconds
    assert mapped(503, Retry_After=date).retry_after_s == seconds


def test_a_date_is_measured_by_the_servers_own_clock() -> None:
    headers = {
        "Date": format_datetime(NOW - timedelta(days=1), usegmt=True),
        "Retry-After": format_datetime(NOW - timedelta(days=1, seconds=-7), usegmt=True),
    }
    assert retry_after_s(headers) == 7


@pytest.mark.parametrize("value", ["soon", "-3", "nan", "", "inf"])
def test_nonsense_is_no_pause(value: str) -> None:
    assert retry_after_s({"Retry-After": value}) is None


def test_milliseconds_are_read_and_years_are_not_waited_for() -> None:
    assert retry_after_s({"retry-after-ms": "250"}) == 0.25
    assert retry_after_s({"Retry-After": "99999999"}) == 3600
    past = format_datetime(NOW - timedelta(hours=1), usegmt=True)
    assert retry_after_s({"Retry-After": past}, NOW) == 0


STREAM = (
    'data: {"a": "ä€😀"}\n\n: keep-alive\n\nevent: x\r\ndata: one\r\ndata:two\r\n\r\n'
    "data: [DONE]\n\n"
)


@given(st.lists(st.integers(0, len(STREAM.encode())), max_size=6))
def test_events_are_the_same_however_the_bytes_are_cut(cuts: list[int]) -> None:
    data = STREAM.encode()
    edges = [0, *sorted(cuts), len(data)]
    reader = EventReader()
    events = [e for a, b in itertools.pairwise(edges) for e in reader.feed(data[a:b])]
    assert events == ['{"a": "ä€😀"}', "one\ntwo", "[DONE]"]


def test_an_event_that_was_cut_off_is_never_handed_out() -> None:
    data = STREAM.encode()
    for at in range(len(data)):
        events = EventReader().feed(data[:at])
        assert all(e in ('{"a": "ä€😀"}', "one\ntwo", "[DONE]") for e in events)
