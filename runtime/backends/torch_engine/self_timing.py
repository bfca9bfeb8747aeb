"""What the engine's own techniques bring, measured against the same engine without them.

    python -m runtime.backends.torch_engine.self_timing CHECKPOINT [--threads N] [--precision P]

Prints a JSON object a line. Times are of the wall clock, which is of no use on a machine that does
anything else; `--cpu-time` takes this process's processor time instead, for one thread alone.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from runtime.backends.torch_engine.engine import Engine, EngineConfig, StepMetrics
from runtime.backends.torch_engine.linear import PRECISIONS
from runtime.backends.torch_engine.model import Model
from runtime.backends.torch_engine.scheduler import SchedulerConfig
from runtime.backends.torch_engine.sequence import GenerationRequest
from runtime.backends.torch_engine.shape import ModelShape
from runtime.backends.torch_engine.weights import SafetensorsSource, read_config

REPEATS = 3


@dataclass(frozen=True, slots=True)
class Bench:
    """What is measured, with prompts that repeat, and the clock that is read."""

    model: Model
    rng: random.Random
    now_s: Callable[[], float]

    def engine(
        self, config: EngineConfig, steps: list[StepMetrics], model: Model | None = None
    ) -> Engine:
        return Engine(model or self.model, self.now_s, config, on_step=steps.append)

    def prompt(self, n: int, model: Model | None = None) -> list[int]:
        vocab_size = (model or self.model).shape.vocab_size
        return [self.rng.randrange(vocab_size) for _ in range(n)]


def prepacking(bench: Bench) -> dict[str, Any]:
    """Prefill of 16 prompts of log-normal lengths, packed, against all padded to the longest."""
    lengths = [max(8, min(512, round(bench.rng.lognormvariate(5, 1)))) for _ in range(16)]

    def prefill_s(sizes: list[int]) -> float:
        best = float("inf")
        for _ in range(REPEATS):
            steps: list[StepMetrics] = []
            config = EngineConfig(16_384, SchedulerConfig(max_step_tokens=16_384))
            engine = bench.engine(config, steps)
            engine.generate([GenerationRequest(bench.prompt(n), 0) for n in sizes])
            best = min(best, sum(s.step_s for s in steps))
        return best

    packed_s, padded_s = prefill_s(lengths), prefill_s([max(lengths)] * len(lengths))
    bound = len(lengths) * max(lengths) / sum(lengths)
    return {
        "lengths": lengths,
        "packed_s": packed_s,
        "padded_s": padded_s,
        "speedup": padded_s / packed_s,
        "token_ratio": bound,
        "share_of_ratio": padded_s / packed_s / bound,
        "target": 0.8,
    }


def mixed_steps(bench: Bench) -> dict[str, Any]:
    """Marginal time of 4 decodes on a 64-token chunk, (T(c, d) - T(c, 0)) / d, against a decode's
    share of a decode-only step (SARATHI's definitions)."""

    def step_s(n_decodes: int, *, chunk: bool) -> float:
        steps: list[StepMetrics] = []
        scheduler = SchedulerConfig(max_step_tokens=64 + n_decodes, chunk_tokens=64)
        engine = bench.engine(EngineConfig(16_384, scheduler), steps)
        running = [
            engine.submit(GenerationRequest(bench.prompt(64), 200)) for _ in range(n_decodes)
        ]
        while any(not s.output for s in running):
            engine.step()
        if chunk:
            engine.submit(GenerationRequest(bench.prompt(64 * 12), 1))
        steps.clear()
        for _ in range(12):
            engine.step()
        wanted = [s.step_s for s in steps if (s.prefilled_tokens == 64) == chunk]
        return sorted(wanted)[len(wanted) // 4]

    chunk_s, mixed_s, decode_s = (
        step_s(0, chunk=True),
        step_s(4, chunk=True),
        step_s(4, chunk=False),
    )
    marginal_s, alone_s = (mixed_s - chunk_s) / 4, decode_s / 4
    return {
        "chunk_s": chunk_s,
        "mixed_s": mixed_s,
        "decode_only_s": decode_s,
        "marginal_over_alone": marginal_s / alone_s,
        "target": 0.6,
    }


def overhead(bench: Bench) -> dict[str, Any]:
    """What of a decode step at batch 32 is no arithmetic: a step of a model with as many layers
    whose matrices are next to nothing, over a step of the model."""

    def step_s(of: Model) -> tuple[float, float]:
        steps: list[StepMetrics] = []
        engine = bench.engine(EngineConfig(16_384), steps, of)
        running = [engine.submit(GenerationRequest(bench.prompt(64, of), 60)) for _ in range(32)]
        while any(not s.output for s in running):
            engine.step()
        steps.clear()
        for _ in range(30):
            engine.step()
        by_time = sorted(steps, key=lambda s: s.step_s)
        middle = by_time[len(by_time) // 4]
        return middle.step_s, middle.schedule_s

    full_s, schedule_s = step_s(bench.model)
    empty_s, _ = step_s(_hollow(bench.model))
    return {
        "decode_step_s": full_s,
        "schedule_s": schedule_s,
        "hollow_step_s": empty_s,
        "share": empty_s / full_s,
        "target": 0.10,
    }


def cascade(bench: Bench) -> dict[str, Any]:
    """Decode steps of 32 requests that share 448 of 480 tokens, shared keys read once or not."""

    def step_s(*, on: bool) -> float:
        steps: list[StepMetrics] = []
        engine = bench.engine(EngineConfig(32_768, cascade=on), steps)
        stem = bench.prompt(448)
        running = [
            engine.submit(GenerationRequest([*stem, *bench.prompt(32)], 60)) for _ in range(32)
        ]
        while any(not s.output for s in running):
            engine.step()
        steps.clear()
        for _ in range(15):
            engine.step()
        return min(s.step_s for s in steps)

    with_s, without_s = step_s(on=True), step_s(on=False)
    return {"with_s": with_s, "without_s": without_s, "speedup": without_s / with_s}


def radix(bench: Bench) -> dict[str, Any]:
    """Prompt tokens computed, against the distinct prefix tokens of the prompts."""
    steps: list[StepMetrics] = []
    engine = bench.engine(EngineConfig(16_384), steps)
    stem = bench.prompt(256)
    prompts = [[*stem[: 256 - 32 * (i % 4)], *bench.prompt(16)] for i in range(32)]
    engine.generate([GenerationRequest(p, 1) for p in prompts])
    distinct = len({tuple(p[: i + 1]) for p in prompts for i in range(len(p))})
    return {
        "prompt_tokens": sum(map(len, prompts)),
        "distinct_prefix_tokens": distinct,
        "prefilled_tokens": sum(s.prefilled_tokens for s in steps),
    }


def streaming(bench: Bench) -> dict[str, Any]:
    """Time from the last of 8 pieces of 128 tokens to the first token: pieces prefilled as they
    come, against the whole prompt at the end (Stream2LLM; pieces come as fast as they prefill)."""
    prompt = bench.prompt(1024)

    def first_token_s(*, stream: bool) -> float:
        engine = bench.engine(EngineConfig(16_384), [])
        sequence = engine.submit(GenerationRequest([], 1), is_open=True)
        if stream:
            for end in range(128, 1024, 128):
                engine.update_prompt(sequence, prompt[:end])
                while engine.step() is not None:
                    pass
        begin_s = bench.now_s()
        engine.update_prompt(sequence, prompt)
        engine.close_prompt(sequence)
        while sequence.result is None:
            engine.step()
        return bench.now_s() - begin_s

    stream_s = min(first_token_s(stream=True) for _ in range(REPEATS))
    wait_s = min(first_token_s(stream=False) for _ in range(REPEATS))
    return {"stream_s": stream_s, "wait_s": wait_s, "speedup": wait_s / stream_s, "target": 4.0}


class _SmallWeights:
    """Weights of whatever size is asked for."""

    def __init__(self, shape: ModelShape) -> None:
        d, s = shape.d_model, shape
        q, kv = s.n_heads * s.head_dim, s.n_kv_heads * s.head_dim
        self._sizes = {
            "embed_tokens": (s.vocab_size, d), "norm": (d,), "layernorm": (d,), "q_proj": (q, d),
            "k_proj": (kv, d), "v_proj": (kv, d), "o_proj": (d, q), "gate_proj": (s.d_ff, d),
            "up_proj": (s.d_ff, d), "down_proj": (d, s.d_ff), "q_norm": (s.head_dim,),
            "k_norm": (s.head_dim,),
        }  # fmt: skip

    def has(self, name: str) -> bool:
        return not name.endswith("bias")

    def get(self, name: str) -> torch.Tensor:
        part = next(p for p in sorted(self._sizes, key=len, reverse=True) if p in name)
        return torch.full(self._sizes[part], 0.01)


def _hollow(model: Model) -> Model:
    """A model with as many layers and hardly any arithmetic."""
    shape = replace(
        model.shape, d_model=16, n_heads=2, n_kv_heads=1, head_dim=8, d_ff=16, vocab_size=64,
        tied=True, qkv_bias=False, moe=None,
    )  # fmt: skip
    return Model(shape, _SmallWeights(shape), model.precision)


MEASUREMENTS: tuple[Callable[[Bench], dict[str, Any]], ...] = (
    radix,
    prepacking,
    mixed_steps,
    overhead,
    cascade,
    streaming,
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--precision", choices=PRECISIONS, default="float32")
    parser.add_argument("--cpu-time", action="store_true")
    names = [m.__name__ for m in MEASUREMENTS]
    parser.add_argument("--only", nargs="+", choices=names, default=names)
    arguments = parser.parse_args()
    if arguments.cpu_time and arguments.threads != 1:
        parser.error("--cpu-time adds up the time of all threads: use it with one")
    torch.set_num_threads(arguments.threads)
    source = SafetensorsSource(arguments.checkpoint)
    model = Model(read_config(arguments.checkpoint), source, arguments.precision)
    now_s = time.process_time if arguments.cpu_time else time.perf_counter
    bench = Bench(model, random.Random(1), now_s)
    bench.engine(EngineConfig(2_048), []).generate([GenerationRequest([1] * 64, 4)])
    head = {
        "precision": model.precision,
        "threads": arguments.threads,
        "clock": now_s.__name__,
    }
    print(json.dumps(head), flush=True)
    for measurement in [m for m in MEASUREMENTS if m.__name__ in arguments.only]:
        print(json.dumps({measurement.__name__: measurement(bench)}), flush=True)


if __name__ == "__main__":
    main()
