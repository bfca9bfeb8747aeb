"""`halo-bench pte`: a trace report over a synthetic corpus of tool-using conversations."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

TURNS = 40
ANSWER_CHARACTERS = 2200
TOOLS = ("web_search", "visit", "python", "bash", "read_file")
_WORDS = (
    "account adjust amber archive balance beacon border branch bridge bucket candle carbon "
    "castle census channel cipher cluster column copper cotton crater cursor daemon delta "
    "desert dialect docket domain dozen eclipse ember engine errand fabric factor ferry "
    "filter flannel forest format fossil funnel galaxy gallon garnet glacier gravel handle "
    "harvest "
)


def write_corpus(path: Path, traces: int, *, files: int = 4, seed: int = 7) -> int:
    """Write `traces` conversations of 40 turns as JSON Lines under the folder `path`; returns the
    bytes written."""
    random = Random(seed)
    pool = _text_pool(random)
    written = 0
    for number in range(files):
        share = traces // files + (number < traces % files)
        with (path / f"traces-{number}.jsonl").open("w", encoding="utf-8") as stream:
            for place in range(share):
                line = json.dumps(_conversation(f"t{number}-{place}", random, pool))
                written += stream.write(line + "\n")
    return written


def _text_pool(random: Random) -> str:
    """A few megabytes of text out of which conversations are cut."""
    vocabulary = _WORDS.split()
    parts: list[str] = []
    for _ in range(60_000):
        word, other = random.choice(vocabulary), random.choice(vocabulary)
        parts.append(f"{word} {other}_{random.randrange(10_000)} is {random.random():.5f}; ")
    return "".join(parts)


def _conversation(id: str, random: Random, pool: str) -> dict[str, Any]:
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": "You are an agent. Use the tools. " + pool[:2000]},
        {"role": "user", "content": f"Task {id}: {_cut(random, pool, 300)}"},
    ]
    usage: list[dict[str, Any]] = []
    context, kept = 700, 0
    for turn in range(TURNS):
        completion = random.randrange(40, 220)
        cached = kept // 128 * 128 if random.random() < 0.8 else 0  # in blocks, or evicted
        usage.append(
            {
                "prompt_tokens": context,
                "completion_tokens": completion,
                "prompt_tokens_details": {"cached_tokens": cached},
            }
        )
        say = _cut(random, pool, 320)
        if turn == TURNS - 1:
            messages.append({"role": "assistant", "content": f"{say}\nFinal answer: {turn}31"})
            break
        name = random.choice(TOOLS)
        arguments = json.dumps({"query": _cut(random, pool, 60)})
        function = {"name": name, "arguments": arguments}
        call = {"id": f"c{turn}", "type": "function", "function": function}
        messages.append({"role": "assistant", "content": say, "tool_calls": [call]})
        answer = _cut(random, pool, int(ANSWER_CHARACTERS * random.choice((0.2, 0.6, 0.8, 2.4))))
        messages.append({"role": "tool", "tool_call_id": f"c{turn}", "content": answer})
        kept = context + completion
        context = kept + len(answer) // 4
    tools = [
        {
            "type": "function",
            "function": {
                "name": name,
                "description": f"The tool {name}.",
                "parameters": {"type": "object", "properties": {"query": {"type": "string"}}},
            },
        }
        for name in TOOLS
    ]
    return {
        "id": id, "model": "llama-3.1-8b", "messages": messages, "tools": tools, "usage": usage,
        "success": random.random() < 0.6,
    }  # fmt: skip


def _cut(random: Random, pool: str, characters: int) -> str:
    start = random.randrange(len(pool) - characters)
    return pool[start : start + characters]


def pte(traces: int = 10_000) -> dict[str, Any]:
    """`halo trace report` over a corpus in a folder of its own, as a process of its own: seconds,
    and the memory of that process and its children."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        size = write_corpus(folder, traces)
        command = [
            sys.executable, "-P", "-c", "from halo.cli import main; main()", "trace", "report",
            str(folder), "--json", "--jobs", "2",
        ]  # fmt: skip
        started = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.PIPE)
        peaks = PeakMemory(process.pid)
        assert process.stdout is not None
        output = peaks.until_end(process)
        elapsed_s = time.perf_counter() - started
        if process.returncode:
            raise SystemExit(f"the report ended with code {process.returncode}")
    report = json.loads(output)
    return {
        "traces": report["counts"]["traces"],
        "turns": report["counts"]["calls"],
        "corpus_bytes": size,
        "elapsed_s": elapsed_s,
        "bytes_per_s": size / elapsed_s,
        "peak_memory_bytes": peaks.most_bytes,
        "cpu_s": sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2]),
        "cores": os.cpu_count(),
        "findings": sum(each["findings"] for each in report["patterns"]),
    }


class PeakMemory:
    """The largest sum of the resident memory of a process and its descendants, sampled."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self.most_bytes = 0

    def until_end(self, process: subprocess.Popen[bytes]) -> bytes:
        """Sample until the process ends; returns what it printed."""
        while True:
            try:
                output, _ = process.communicate(timeout=0.25)
                return output
            except subprocess.TimeoutExpired:
                self.most_bytes = max(self.most_bytes, sum(map(_resident, self._family())))

    def _family(self) -> Iterator[int]:
        waiting = [self._pid]
        while waiting:
            pid = waiting.pop()
            yield pid
            try:
                for task in Path(f"/proc/{pid}/task").iterdir():
                    waiting += map(int, (task / "children").read_text().split())
            except OSError:
                continue


def _resident(pid: int) -> int:
    """Resident bytes of a process, shared pages in proportion where the system tells."""
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass
    return 0
