"""Single workers or tensor-parallel groups: the scheduler decides by simulation."""

from __future__ import annotations

import pytest
from small_problems import call, ticking

from costmodel.simulator import Machine, Workload, even_groups
from costmodel.simulator.profiles import worker_from_profiles
from planner.errors import PlanError
from planner.schedule.layouts import LayoutChoice, choose_layout

SINGLE = Machine(
    tuple(worker_from_profiles(f"gpu{i}", "h100-sxm", ["qwen3-32b"]) for i in range(4))
)
PAIRS = Machine(
    tuple(worker_from_profiles(f"pair{i}", "h100-sxm", ["qwen3-32b"], devices=2) for i in range(2))
)


def choose(model: str, rows: int, **layouts: Machine) -> LayoutChoice:
    workload = Workload(
        (call("a", model, own=600, out=60), call("b", model, 0, out=60)), even_groups(rows, 8)
    )
    return choose_layout(workload, layouts, now=ticking(), budget_s=None, max_steps=5)


def test_few_rows_go_to_groups_and_many_to_single_workers() -> None:
    few = choose("qwen3-32b", 2, single=SINGLE, pairs=PAIRS)
    assert few.layout == "pairs"  # half the weights a step: one row is faster
    assert set(few.scores) == {"single", "pairs"}
    assert few.machine is PAIRS


def test_a_model_that_fits_groups_alone_is_placed_there() -> None:
    large = ["llama-3.1-70b"]
    single = Machine((worker_from_profiles("gpu", "h100-sxm", large),))
    group = Machine((worker_from_profiles("four", "h100-sxm", large, devices=4),))
    found = choose("llama-3.1-70b", 8, single=single, group=group)
    assert found.layout == "group"
    assert "fits no worker" in found.refused["single"]
    with pytest.raises(PlanError, match=r"no layout can run this plan: single: .*fits no worker"):
        choose("llama-3.1-70b", 8, single=single)
