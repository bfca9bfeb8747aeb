"""Placement across pools: the printed numbers of PrfaaS, and the simulator against the closed form.

Sources: PrfaaS, tables 5 and 6 and section 4.3.1. The H20 line is fitted to two of the printed
rates, so it is an input here and no test.
"""

from __future__ import annotations

import math

import pytest

from costmodel.errors import ProfileError
from costmodel.simulator.pools import (
    PoolCosts,
    PoolPlacement,
    PromptLengths,
    best_placement,
    capacity,
    goes_remote,
    pool_run,
)

MIB, KIB = 2**20, 2**10
LENGTHS = PromptLengths(9.90, 1.00, 128, 131_072)
POINTS = LENGTHS.points()
COSTS = PoolCosts(
    remote_prefill_s=lambda n: 0.4010 + 3.798e-5 * n + 1.176e-10 * n * n,
    local_prefill_s=lambda n: 0.387 + 1.411e-4 * n,
    kv_bytes=lambda n: 174.5 * MIB + 16.73 * KIB * n,
    link_bytes_per_s=100e9 / 8,
    decode_slots=20,
    decode_step_s=0.025,
    output_tokens=1024,
)


def test_the_length_distribution_is_the_printed_one() -> None:
    assert sum(POINTS) / len(POINTS) == pytest.approx(27_000, rel=0.03)
    assert sum(n > 19_400 for n in POINTS) / len(POINTS) == pytest.approx(0.496, abs=0.005)


def test_costs_reproduce_table_5() -> None:
    for tokens, mib, seconds in ((1024, 190.8, 0.44), (8192, 308.9, 0.72), (131_072, 2316.3, 7.40)):
        assert COSTS.kv_bytes(tokens) / MIB == pytest.approx(mib, rel=0.005)
        assert COSTS.remote_prefill_s(tokens) == pytest.approx(seconds, rel=0.005)


@pytest.mark.parametrize(("instances", "theta"), [(3, 2.344), (5, 3.906), (8, 6.250)])
def test_decode_rates(instances: int, theta: float) -> None:
    found = capacity(POINTS, COSTS, PoolPlacement(19_400, 4, 3, instances))
    assert found.decode == pytest.approx(theta, abs=0.0005)


def test_table_6_prfaas() -> None:
    found = capacity(POINTS, COSTS, PoolPlacement(19_400, 4, 3, 5))
    assert found.remote == pytest.approx(1.61, rel=0.03)
    assert found.prefill == pytest.approx(1.64, rel=0.03)
    assert found.requests_per_s == pytest.approx(3.24, rel=0.03)
    # Egress: about 13 of 100 Gbit/s, 12.3 derived.
    assert found.link_bytes_per_s * 8 / 1e9 == pytest.approx(13, rel=0.10)


def test_table_6_homogeneous_and_naive() -> None:
    homogeneous = capacity(POINTS, COSTS, PoolPlacement(math.inf, 0, 9, 3))
    assert homogeneous.prefill == pytest.approx(2.11, rel=0.03)
    assert homogeneous.decode == pytest.approx(2.35, rel=0.01)
    assert homogeneous.requests_per_s == pytest.approx(2.11, rel=0.03)
    naive = capacity(POINTS, COSTS, PoolPlacement(0, 4, 0, 8))
    assert naive.requests_per_s == pytest.approx(2.45, rel=0.03)
    assert naive.decode == pytest.approx(6.25, rel=0.001)


def test_the_grid_search_finds_the_printed_optimum() -> None:
    placement, found = best_placement(POINTS, COSTS, remote=4, local=8)
    assert (placement.prefill, placement.decode) == (3, 5)
    assert placement.threshold_tokens == pytest.approx(19_400, rel=0.05)
    assert found.requests_per_s == pytest.approx(3.24, rel=0.03)


def test_the_threshold_follows_the_link_and_the_local_load() -> None:
    def threshold(costs: PoolCosts, local: int = 8) -> float:
        return best_placement(POINTS, costs, remote=4, local=local)[0].threshold_tokens

    from dataclasses import replace

    normal = threshold(COSTS)
    throttled = replace(COSTS, link_bytes_per_s=0.8e9 / 8)
    assert threshold(throttled) > normal
    loaded = replace(COSTS, local_prefill_s=lambda n: 2 * COSTS.local_prefill_s(n))
    assert threshold(loaded) < normal


def test_a_dense_model_does_not_fit_the_link() -> None:
    """Table 3: MiniMax-M2.5 makes 59.93 Gbit of KV cache a second of prefill at 32K tokens."""
    from dataclasses import replace

    seconds = COSTS.remote_prefill_s(32_768)
    dense = replace(COSTS, kv_bytes=lambda n: 59.93e9 / 8 * seconds * n / 32_768)
    found = capacity([32_768.0] * 10, dense, PoolPlacement(19_400, 4, 3, 5))
    by_compute = 4 / seconds
    assert found.remote < 0.5 * by_compute  # four instances would need 240 Gbit/s


def test_routing_counts_what_is_cached() -> None:
    for scarce, remote in ((True, True), (False, False)):
        assert goes_remote(30_000, 5_000, 28_000, 19_400, bandwidth_is_scarce=scarce) is remote
    assert not goes_remote(30_000, 15_000, 0, 19_400, bandwidth_is_scarce=True)


class TestSimulator:
    """Below capacity requests do not pile up; above, the simulator gives the closed form's rate."""

    @pytest.mark.parametrize(
        "placement",
        [
            PoolPlacement(19_400, 4, 3, 5),
            PoolPlacement(math.inf, 0, 9, 3),
            PoolPlacement(0, 4, 0, 8),
        ],
    )
    def test_throughput_when_saturated_is_the_capacity(self, placement: PoolPlacement) -> None:
        expected = capacity(POINTS, COSTS, placement).requests_per_s
        run = pool_run(LENGTHS, COSTS, placement, requests=2_500, rate=1.4 * expected, seed=3)
        # Ends counted between the first and the last tenth: without filling and draining.
        ends = sorted(run.group_end_s)
        low, high = len(ends) // 10, len(ends) * 9 // 10
        rate = (high - low) / (ends[high] - ends[low])
        assert rate == pytest.approx(expected, rel=0.05)

    def test_below_capacity_nothing_piles_up(self) -> None:
        placement = PoolPlacement(19_400, 4, 3, 5)
        expected = capacity(POINTS, COSTS, placement).requests_per_s

        def mean_latency(share: float) -> float:
            run = pool_run(LENGTHS, COSTS, placement, requests=1_200, rate=share * expected)
            return run.makespan_s

        assert mean_latency(0.7) == pytest.approx(1_200 / (0.7 * expected), rel=0.12)
        # Overload: the backlog makes the run longer than the arrivals take.
        assert mean_latency(1.5) > 1.2 * 1_200 / (1.5 * expected)

    def test_remote_prefill_is_chosen_by_length_alone(self) -> None:
        run = pool_run(
            LENGTHS, COSTS, PoolPlacement(19_400, 4, 3, 5), requests=800, rate=2.0, seed=1
        )
        remote = sum(w.calls for w in run.workers if w.name.startswith("remote"))
        assert remote / 800 == pytest.approx(0.496, abs=0.05)


def test_pools_without_instances_are_refused() -> None:
    with pytest.raises(ProfileError, match="without instances"):
        capacity(POINTS, COSTS, PoolPlacement(19_400, 0, 3, 5))
    with pytest.raises(ProfileError, match="decode"):
        capacity(POINTS, COSTS, PoolPlacement(19_400, 4, 3, 0))
    with pytest.raises(ProfileError, match="sigma"):
        PromptLengths(9.9, 0.0, 1, 2)
