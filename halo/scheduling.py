"""The scheduler and its simulator, for those who want to plan without running: benchmarks, capacity
questions, other people's schedulers. `halo.run` and `halo explain` use the same functions."""

from __future__ import annotations

from costmodel.simulator import (
    H200_8B,
    AffineTimer,
    Assignment,
    EngineSpec,
    LinkSpec,
    Machine,
    ModelWork,
    Operation,
    PromptPart,
    Simulation,
    Simulator,
    TabulatedTimer,
    ToolLaneSpec,
    ToolWork,
    WorkerSpec,
    Workload,
    even_groups,
    simulate,
)
from costmodel.simulator.pools import (
    PoolCosts,
    PoolPlacement,
    PromptLengths,
    best_placement,
    capacity,
    goes_remote,
    pool_run,
)
from costmodel.simulator.profiles import engine_from_profiles, worker_from_profiles
from planner.schedule.auto import METHODS, schedule
from planner.schedule.baselines import BASELINES, with_co_residency
from planner.schedule.layouts import choose_layout
from planner.schedule.objective import Objective
from planner.schedule.oracle import OracleResult, solve_exactly
from planner.schedule.problem import Problem
from planner.schedule.schedule import Schedule

__all__ = [
    "BASELINES",
    "H200_8B",
    "METHODS",
    "AffineTimer",
    "Assignment",
    "EngineSpec",
    "LinkSpec",
    "Machine",
    "ModelWork",
    "Objective",
    "Operation",
    "OracleResult",
    "PoolCosts",
    "PoolPlacement",
    "Problem",
    "PromptLengths",
    "PromptPart",
    "Schedule",
    "Simulation",
    "Simulator",
    "TabulatedTimer",
    "ToolLaneSpec",
    "ToolWork",
    "WorkerSpec",
    "Workload",
    "best_placement",
    "capacity",
    "choose_layout",
    "engine_from_profiles",
    "even_groups",
    "goes_remote",
    "pool_run",
    "schedule",
    "simulate",
    "solve_exactly",
    "with_co_residency",
    "worker_from_profiles",
]
