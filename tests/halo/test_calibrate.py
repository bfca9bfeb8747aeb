"""`halo calibrate` through the seam: on an engine whose steps are known, and on real ones."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from costmodel.batching import Batching
from costmodel.calibrate import calibrate
from costmodel.hardware import load_hardware
from costmodel.models import load_model
from costmodel.radix_cache import RadixCache, Ticket
from costmodel.step import StepModel
from costmodel.usage import Usage
from halo.calibrate import measure
from halo.cli.calibrate import calibrate as verb
from halo.errors import CalibrationError, ConfigError
from halo.processor_clock import ProcessorClock
from halo.profiles import engine_profile
from runtime.backends.base import Backend, Capabilities, Completion, Request
from runtime.clock import Clock, LoopClock, new_event_loop

MODEL = load_model("smollm2-135m")
TRUTH = replace(
    load_hardware("laptop-cpu"),
    compute_efficiency=((1, 0.02), (32, 0.3), (256, 0.6)),
    call_latency_s=0.003,
    request_overhead_s=2e-4,
)
RULES = Batching(chunk_tokens=256, max_sequences=32, fuse_decodes=True)


@dataclass(eq=False)
class _Running:
    tokens_left: int
    context: int
    answer_left: int
    ticket: Ticket
    done: asyncio.Event = field(default_factory=asyncio.Event)
    answered: int = 0


class SteppedEngine(Backend):
    """Continuous batching on a virtual clock: each step takes what the step formula says."""

    name = "stepped"

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._step = StepModel(MODEL, TRUTH)
        self._cache = RadixCache()
        self._running: list[_Running] = []
        self._loop: asyncio.Task[None] | None = None

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(
            max_in_flight=32, context_tokens=4096, prefix_cache=True, reports_cached_tokens=True
        )

    def count_tokens(self, text: str) -> int:
        return len(text.split())

    async def generate(
        self, request: Request, on_prefilled: Callable[[], None] | None = None
    ) -> Completion:
        words = request.messages[0].content.split()
        ids = [hash(word) for word in words]
        ticket = self._cache.start(ids)
        one = _Running(
            len(ids) - ticket.cached_tokens, ticket.cached_tokens, request.max_tokens, ticket
        )
        self._running.append(one)
        if self._loop is None or self._loop.done():
            self._loop = asyncio.ensure_future(self._run())
        await one.done.wait()
        self._cache.finish(ticket)
        usage = Usage(len(ids), one.answered, ticket.cached_tokens)
        return Completion("", "length", usage)

    async def _run(self) -> None:
        await self._clock.sleep_s(TRUTH.call_latency_s)
        while self._running:
            decoding = [r for r in self._running if not r.tokens_left]
            room = RULES.chunk_tokens - len(decoding)
            chunks: list[tuple[_Running, int]] = []
            for one in self._running:
                if one.tokens_left and room > 0:
                    tokens = min(room, one.tokens_left)
                    chunks.append((one, tokens))
                    room -= tokens
            seconds = self._step.step_s(
                [(n, r.context) for r, n in chunks], len(decoding), sum(r.context for r in decoding)
            )
            await self._clock.sleep_s(seconds)
            for one, n in chunks:
                one.tokens_left -= n
                one.context += n
            for one in [*decoding, *(r for r, _ in chunks if not r.tokens_left)]:
                one.context += 1
                one.answered += 1
                one.answer_left -= 1
                if one.answer_left <= 0:
                    one.done.set()
                    self._running.remove(one)


def test_an_engine_with_known_steps_is_learned_within_a_few_percent() -> None:
    async def run() -> Any:
        clock = LoopClock()
        return await measure(
            SteppedEngine(clock), clock, "m", engine="stepped", device="laptop-cpu", budget_s=300,
            held_out=30,
        )  # fmt: skip

    loop = new_event_loop(virtual=True)
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        samples = runner.run(run())
    assert len(samples.held_out) == 30
    hits = sum(c.cached_tokens for s in samples.samples for c in s.calls)
    assert hits > 1000
    result = calibrate(samples, MODEL, load_hardware("laptop-cpu"))
    result.require()
    assert result.median_error < 0.08
    assert result.rank_correlation > 0.97
    assert result.batching.chunk_tokens == RULES.chunk_tokens


def test_the_command_writes_a_profile_that_estimates_find(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = tmp_path / "models"
    flags = {"engine": "simulated", "models_dir": models}

    def run(**options: Any) -> dict[str, Any]:
        settings: dict[str, Any] = {
            "samples_file": None, "save_samples": tmp_path / "raw.json", "out": None,
            "hardware": None, "shape": None, "budget_s": 400.0, "held_out": 20,
            "processor_time": False, "config_file": None, "flags": flags, "json_out": True,
        }  # fmt: skip
        verb(**{**settings, **options})
        document: dict[str, Any] = json.loads(capsys.readouterr().out)
        return document

    first = run()
    raw = json.loads((tmp_path / "raw.json").read_text("utf-8"))
    assert len([s for s in raw["samples"] if s["split"] == "held_out"]) == 20
    again = run(samples_file=tmp_path / "raw.json", save_samples=None)
    assert again["median_error"] == first["median_error"]
    if not first["refused"]:
        found = engine_profile("simulated", "simulated", models_dir=models)
        assert found.calibrated
        assert found.hardware.held_out_median_error == pytest.approx(first["median_error"])


def test_a_refused_profile_is_not_written(tmp_path: Path) -> None:
    samples = {
        "format": "halo-calibration-samples-1", "engine": "x", "model": "llama-3.1-8b",
        "device": "h200",
        "samples": [
            {
                "name": f"s{i}", "split": "held_out" if i % 2 else "fit",
                "seconds": 0.01 * (7 ** (i % 5)), "calls": [[100 + i, 4, 0]],
            }
            for i in range(40)
        ],
    }  # fmt: skip
    path = tmp_path / "raw.json"
    path.write_text(json.dumps(samples), "utf-8")
    with pytest.raises(CalibrationError, match="is refused"):
        verb(
            samples_file=path, save_samples=None, out=tmp_path / "p.toml", hardware=None,
            shape=None, budget_s=1, held_out=1, processor_time=False, config_file=None, flags={},
            json_out=False,
        )  # fmt: skip
    assert not (tmp_path / "p.toml").exists()


@pytest.mark.skipif(not Path("/proc/self/schedstat").exists(), reason="Linux alone")
def test_processor_seconds_count_work_and_not_waiting() -> None:
    async def run() -> tuple[float, float, float]:
        clock = ProcessorClock()
        start = clock.now_s()
        await clock.sleep_s(0.2)
        waited = clock.now_s() - start
        # A child process that works for about a third of a second, and stays until it is told.
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-c",
            "import time\n"
            "while time.process_time() < 0.35: pass\n"
            "print('done', flush=True)\n"
            "input()",
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        assert child.stdout is not None
        await child.stdout.readline()
        worked = clock.now_s() - start - waited
        await child.communicate(b"\n")
        return start, waited, worked

    start, waited, worked = asyncio.run(run())
    assert start > 0
    assert waited < 0.15
    assert 0.3 <= worked < 2.0


def test_processor_seconds_are_for_one_thread_of_this_machine() -> None:
    options: dict[str, Any] = {
        "samples_file": None, "save_samples": None, "out": None, "hardware": None, "shape": None,
        "budget_s": 1.0, "held_out": 10, "processor_time": True, "config_file": None,
        "json_out": False,
    }  # fmt: skip
    for flags in ({"engine": "simulated", "threads": 1}, {"engine": "local", "threads": 2}):
        with pytest.raises(ConfigError, match="--threads 1"):
            verb(**options, flags=flags)


@pytest.mark.live
@pytest.mark.parametrize(("engine", "package"), [("local", "openvino_genai"), ("torch", "torch")])
def test_a_real_engine_is_learned(engine: str, package: str, tmp_path: Path) -> None:
    # Needs a quiet machine: wall-clock times are what is learned.
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    verb(
        samples_file=None, save_samples=tmp_path / "raw.json", out=tmp_path / "p.toml",
        hardware="laptop-cpu", shape="smollm2-135m", budget_s=170.0, held_out=60,
        processor_time=False, config_file=None,
        flags={"engine": engine, "model": "smollm2-135m-instruct"}, json_out=False,
    )  # fmt: skip
    profile = load_hardware(tmp_path / "p.toml")
    assert profile.held_out_median_error is not None
    assert profile.held_out_median_error <= 0.15
