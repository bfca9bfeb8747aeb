"""The SQL benchmark's counting: what a contender asked, asked again, and said."""

from __future__ import annotations

import json
import sys
import urllib.request

from workloads.sql_bench import measured
from workloads.sql_server import CountingServer

_BODY = json.dumps({"model": "m", "messages": [{"role": "user", "content": "late? yes or no"}]})

_CONTENDER = """
import json, sys, urllib.request
for attempt in sys.argv[1].split(","):
    said = {"x-stainless-retry-count": attempt}
    request = urllib.request.Request(
        sys.argv[2] + "/chat/completions", sys.argv[3].encode(), said
    )
    answer = json.load(urllib.request.urlopen(request))["choices"][0]["message"]["content"]
print("noise")
print(json.dumps({"queries_s": 0.1, "rows": [len(answer)]}))
"""


def test_requests_prompts_and_second_attempts_are_counted() -> None:
    with CountingServer() as server:
        command = [sys.executable, "-c", _CONTENDER, "0,0,1", server.url, _BODY]
        found = measured(command, server, limit_s=60)
    assert found["requests"] == 3
    assert found["repeated_after_failure"] == 1
    assert found["distinct_prompts"] == 1
    assert found["rows"] in ([2], [3])  # no, yes
    assert found["processor_s"] > 0


def test_equal_prompts_get_equal_answers() -> None:
    with CountingServer() as server:
        request = urllib.request.Request(server.url + "/chat/completions", _BODY.encode())
        answers = [urllib.request.urlopen(request).read() for _ in range(2)]
    assert answers[0] == answers[1]


def test_a_contender_that_fails_is_told_as_failed() -> None:
    with CountingServer() as server:
        found = measured([sys.executable, "-c", "raise SystemExit('no')"], server, limit_s=60)
    assert found["failed"].strip() == "no"
    assert found["requests"] == 0
