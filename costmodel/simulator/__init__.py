"""The simulator: runs a physical plan over engine steps in virtual time."""

from costmodel.simulator.assignment import Assignment
from costmodel.simulator.engine import Simulator, simulate, topological_priorities
from costmodel.simulator.machine import EngineSpec, LinkSpec, Machine, ToolLaneSpec, WorkerSpec
from costmodel.simulator.result import Simulation, Span, WorkerUse
from costmodel.simulator.timer import (
    H200_8B,
    AffineTimer,
    StepTimer,
    TabulatedTimer,
)
from costmodel.simulator.workload import (
    ModelWork,
    Operation,
    PromptPart,
    ToolWork,
    Workload,
    even_groups,
)

__all__ = [
    "H200_8B",
    "AffineTimer",
    "Assignment",
    "EngineSpec",
    "LinkSpec",
    "Machine",
    "ModelWork",
    "Operation",
    "PromptPart",
    "Simulation",
    "Simulator",
    "Span",
    "StepTimer",
    "TabulatedTimer",
    "ToolLaneSpec",
    "ToolWork",
    "WorkerSpec",
    "WorkerUse",
    "Workload",
    "even_groups",
    "simulate",
    "topological_priorities",
]
