"""Errors of planning: the user's (`PlanError`) and ours (`InvariantError`)."""

from __future__ import annotations

from costmodel.errors import HaloError


class PlanError(HaloError):
    """The workflow cannot be planned: unknown column, cycle, two nodes of one name, bad bound."""


class InvariantError(HaloError):
    """A plan broke a promise of the planner: a defect in Halo, naming the rule or stage."""
