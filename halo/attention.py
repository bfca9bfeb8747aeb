"""The setting `attention`: which technique the engines of a plan serve with."""

from __future__ import annotations

from costmodel.hardware import HardwareProfile
from costmodel.models import ModelProfile
from halo.config import Config
from halo.profiles import engine_profile
from planner.context import PlanContext
from planner.physical import PhysicalPlan, Worker
from planner.stats import PlanStats
from planner.techniques import Wanted, with_techniques


def with_attention(
    plan: PhysicalPlan, stats: PlanStats, context: PlanContext, config: Config
) -> PhysicalPlan:
    """The plan with the technique that the settings ask for, or that the planner chooses. Raises
    `TechniqueRefusedError`, and `ProfileError` where the shape of a model is not known."""

    def shape_of(worker: Worker) -> tuple[ModelProfile, HardwareProfile]:
        found = engine_profile(worker.engine, worker.model, models_dir=config.models_dir)
        return found.model, found.hardware

    wanted = Wanted(config.attention, not config.exact, frozenset(config.checkpoints))
    return with_techniques(plan, stats, context, wanted, shape_of)
