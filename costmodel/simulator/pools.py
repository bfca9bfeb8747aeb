"""Placement across pools (Prefill as a Service): long prompts are prefilled elsewhere.

Requests with more uncached tokens than a threshold go to a remote pool of prefill instances and
their KV cache comes back over a link; the others are prefilled in the local pool; all are decoded
by the local decode instances. `capacity` is the closed form of PrfaaS (section 3: the three rates
and their minimum); `pool_run` is the same placement in the simulator, with requests that arrive one
by one, and has to agree with it.

Times are averaged over the lengths of prompts: the mean of T(l), not T of the mean length.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from random import Random
from statistics import NormalDist

from costmodel.errors import ProfileError
from costmodel.simulator.assignment import Assignment
from costmodel.simulator.engine import simulate
from costmodel.simulator.machine import EngineSpec, Machine, WorkerSpec
from costmodel.simulator.result import Simulation
from costmodel.simulator.workload import ModelWork, Operation, PromptPart, Workload

PrefillSeconds = Callable[[float], float]
QUANTILES = 4096
"""Points at which the distribution of lengths is averaged."""


@dataclass(frozen=True, slots=True)
class PromptLengths:
    """Uncached prompt tokens: a log-normal distribution cut to [low, high]."""

    mu: float
    sigma: float
    low: float
    high: float

    def __post_init__(self) -> None:
        if self.sigma <= 0 or not 0 < self.low < self.high:
            raise ProfileError("prompt lengths need sigma > 0 and 0 < low < high")

    def quantile(self, share: float) -> float:
        """The length that `share` of the prompts do not exceed."""
        normal = NormalDist(self.mu, self.sigma)
        a, b = normal.cdf(math.log(self.low)), normal.cdf(math.log(self.high))
        return math.exp(normal.inv_cdf(a + (b - a) * share))

    def points(self) -> list[float]:
        """Lengths that stand for equal shares of the prompts, ascending."""
        return [self.quantile((i + 0.5) / QUANTILES) for i in range(QUANTILES)]


@dataclass(frozen=True, slots=True)
class PoolPlacement:
    """Pools and the rule between them.

    Attributes:
        threshold_tokens: longer prompts are prefilled remotely. Infinite for no remote pool, 0 for
            no local prefill.
        remote, prefill, decode: instances of each pool.
    """

    threshold_tokens: float
    remote: int
    prefill: int
    decode: int


@dataclass(frozen=True)
class PoolCosts:
    """What requests cost in each pool.

    Attributes:
        remote_prefill_s, local_prefill_s: seconds of one instance by prompt tokens.
        kv_bytes: of a prompt by its tokens.
        link_bytes_per_s: from the remote pool, all its instances together.
        decode_slots: requests in a decode instance's batch. decode_step_s: seconds of its step.
        output_tokens: of a request.
    """

    remote_prefill_s: PrefillSeconds
    local_prefill_s: PrefillSeconds
    kv_bytes: Callable[[float], float]
    link_bytes_per_s: float
    decode_slots: int
    decode_step_s: float
    output_tokens: int


@dataclass(frozen=True, slots=True)
class Capacity:
    """Rates in requests a second, each pool by itself, and what they allow together.

    Attributes:
        offloaded: share of requests above the threshold.
        remote, prefill, decode: what the pools take, of their own requests.
        requests_per_s: of all requests; the smallest of the three after their shares.
        link_bytes_per_s: used at that rate.
    """

    offloaded: float
    remote: float
    prefill: float
    decode: float
    requests_per_s: float
    link_bytes_per_s: float


def capacity(lengths: Sequence[float], costs: PoolCosts, placement: PoolPlacement) -> Capacity:
    """The closed form. `lengths`: equally likely prompt lengths, such as `PromptLengths.points()`.

    Raises `ProfileError` when a pool that gets requests has no instance.
    """
    long = [x for x in lengths if x > placement.threshold_tokens]
    short = [x for x in lengths if x <= placement.threshold_tokens]
    share = len(long) / len(lengths)
    if (long and placement.remote < 1) or (short and placement.prefill < 1):
        raise ProfileError(
            f"{share:.0%} of the prompts are above {placement.threshold_tokens:g} tokens: a pool "
            f"without instances would get them or the others ({placement})"
        )
    if placement.decode < 1:
        raise ProfileError("there is no decode instance")
    remote = local = math.inf
    kv = 0.0
    if long:
        kv = _mean([costs.kv_bytes(x) for x in long])
        by_compute = placement.remote / _mean([costs.remote_prefill_s(x) for x in long])
        remote = min(by_compute, costs.link_bytes_per_s / kv)
    if short:
        local = placement.prefill / _mean([costs.local_prefill_s(x) for x in short])
    decode = placement.decode * costs.decode_slots / (costs.decode_step_s * costs.output_tokens)
    rate = min(
        remote / share if long else math.inf,
        local / (1 - share) if short else math.inf,
        decode,
    )
    return Capacity(share, remote, local, decode, rate, rate * share * kv)


def best_placement(
    lengths: Sequence[float],
    costs: PoolCosts,
    *,
    remote: int,
    local: int,
    thresholds: Sequence[float] | None = None,
) -> tuple[PoolPlacement, Capacity]:
    """The threshold and the split of `local` instances into prefill and decode that take the most
    requests; the lower threshold of equal ones. By default thresholds are tried at each percent of
    the lengths, then finely around the best."""
    ordered = sorted(lengths)

    def search(tried: Sequence[float]) -> tuple[PoolPlacement, Capacity]:
        best: tuple[PoolPlacement, Capacity] | None = None
        for threshold in tried:
            for prefill in range(local):
                placement = PoolPlacement(threshold, remote, prefill, local - prefill)
                try:
                    found = capacity(ordered, costs, placement)
                except ProfileError:
                    continue
                if best is None or found.requests_per_s > best[1].requests_per_s * (1 + 1e-9):
                    best = placement, found
        if best is None:
            raise ProfileError(f"no split of {local} local and {remote} remote instances works")
        return best

    if thresholds is not None:
        return search(thresholds)
    n = len(ordered)
    coarse = [0.0, *(ordered[min(n - 1, n * i // 100)] for i in range(1, 100)), math.inf]
    placement, found = search(coarse)
    if not 0 < placement.threshold_tokens < math.inf:
        return placement, found
    around = [placement.threshold_tokens * (0.9 + 0.004 * i) for i in range(51)]
    finer = search(around)
    return finer if finer[1].requests_per_s > found.requests_per_s else (placement, found)


def goes_remote(
    total_tokens: float,
    cached_local: float,
    cached_remote: float,
    threshold_tokens: float,
    *,
    bandwidth_is_scarce: bool,
) -> bool:
    """Cache-aware routing (PrfaaS, section 3). With scarce bandwidth a request stays when what the
    local cache lacks is at most the threshold; otherwise the longer of the two cached prefixes
    counts for both, since it can be moved."""
    cached = cached_local if bandwidth_is_scarce else max(cached_local, cached_remote)
    return total_tokens - cached > threshold_tokens


class _LengthTimer:
    """A prefill that takes as long as its instance says for that many tokens."""

    def __init__(self, seconds: PrefillSeconds) -> None:
        self._seconds = seconds

    def step_s(
        self, prefill_tokens: int, prefill_context: int, decodes: float, context_tokens: float
    ) -> float:
        return self._seconds(prefill_tokens) if prefill_tokens else 0.0


class _StepTimer:
    """Decoding at a fixed time a step, whatever the batch; prompts have arrived as KV cache."""

    def __init__(self, step_s: float) -> None:
        self._step_s = step_s

    def step_s(
        self, prefill_tokens: int, prefill_context: int, decodes: float, context_tokens: float
    ) -> float:
        return self._step_s if decodes else 0.0


def pool_run(
    lengths: PromptLengths,
    costs: PoolCosts,
    placement: PoolPlacement,
    *,
    requests: int,
    rate: float,
    seed: int = 0,
) -> Simulation:
    """Simulate `requests` that arrive at `rate` a second (exponential gaps) under a placement.

    Each passes prefill, link (nothing for local ones) and decode. Prefill instances take one prompt
    at a time; a request goes to the instance with the least work so far.
    """
    draw = Random(seed)
    tokens = [max(1, round(lengths.quantile(draw.random()))) for _ in range(requests)]
    arrivals: list[float] = []
    at = 0.0
    for _ in range(requests):
        at += draw.expovariate(rate)
        arrivals.append(at)
    remote = [n > placement.threshold_tokens for n in tokens]
    one = EngineSpec(_LengthTimer(costs.remote_prefill_s), 0.0, 0.0, max_running=1,
                     chunk_tokens=2**31)  # fmt: skip
    local = replace(one, timer=_LengthTimer(costs.local_prefill_s))
    link = replace(one, timer=_LengthTimer(lambda n: costs.kv_bytes(n) / costs.link_bytes_per_s))
    decode = EngineSpec(_StepTimer(costs.decode_step_s), 0.0, 0.0, max_running=costs.decode_slots)
    workers = [
        *(WorkerSpec(f"remote{i}", {"prefill": one}, 1.0, ("prefill",))
          for i in range(placement.remote)),
        *(WorkerSpec(f"prefill{i}", {"prefill": local}, 1.0, ("prefill",))
          for i in range(placement.prefill)),
        WorkerSpec("link", {"link": link}, 1.0, ("link",)),
        *(WorkerSpec(f"decode{i}", {"decode": decode}, 1.0, ("decode",))
          for i in range(placement.decode)),
    ]  # fmt: skip
    load = [0.0] * len(workers)

    def least(first: int, count: int, seconds: float) -> int:
        chosen = min(range(first, first + count), key=lambda w: load[w])
        load[chosen] += seconds
        return chosen

    n_remote, n_local = placement.remote, placement.prefill
    prefill_on = [
        least(0, n_remote, costs.remote_prefill_s(n))
        if far
        else least(n_remote, n_local, costs.local_prefill_s(n))
        for n, far in zip(tokens, remote, strict=True)
    ]
    at_link = n_remote + n_local
    decode_on = [least(at_link + 1, placement.decode, 1.0) for _ in tokens]
    operations = (
        Operation("prefill", _work("prefill", 0), prompt_tokens=tokens),
        Operation(
            "link",
            _work("link", 0),
            (0,),
            prompt_tokens=[n if far else 0 for n, far in zip(tokens, remote, strict=True)],
        ),
        Operation(
            "decode",
            _work("decode", costs.output_tokens),
            (1,),
            prompt_tokens=[0] * requests,
        ),
    )
    workload = Workload(operations, (1,) * requests, arrival_s=tuple(arrivals))
    order = [float(i) for i in range(requests)]
    assignment = Assignment([*prefill_on, *[at_link] * requests, *decode_on], order * 3)
    return simulate(workload, Machine(tuple(workers)), assignment)


def _work(model: str, output_tokens: int) -> ModelWork:
    return ModelWork(model, (PromptPart("tokens", 1, True),), output_tokens)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
