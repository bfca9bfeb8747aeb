"""Errors of planning: the user's (`PlanError`) and ours (`InvariantError`)."""

from __future__ import annotations

from costmodel.errors import HaloError


class PlanError(HaloError):
    """The workflow cannot be planned: unknown column, cycle, two nodes of one name, bad bound."""


class TechniqueRefusedError(PlanError):
    """An attention technique that was asked for must not serve the plan.

    Attributes:
        setting: the value of the setting `attention`; `worker`: on which it is refused; `reason`.
    """

    def __init__(self, setting: str, worker: str, reason: str) -> None:
        super().__init__(f"setting attention={setting!r} is refused on worker {worker!r}: {reason}")
        self.setting = setting
        self.worker = worker
        self.reason = reason


class InvariantError(HaloError):
    """A plan broke a promise of the planner: a defect in Halo, naming the rule or stage."""
