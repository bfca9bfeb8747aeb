"""The plan that a run directory keeps: written when a run begins, continued when it is resumed."""

from __future__ import annotations

from dataclasses import dataclass

from costmodel.errors import HaloError
from planner.errors import PlanError
from planner.logical import LogicalPlan
from planner.physical import PhysicalPlan
from planner.serialize import from_json, to_json
from planner.stats import PlanStats
from runtime.errors import RunDirectoryError
from runtime.run_directory import RunDirectory


@dataclass(frozen=True)
class KeptPlan:
    """What a run began with.

    Attributes:
        plan: what it runs, and `stats` what was expected of it.
        merged: the batch as it was written, before rules changed it: what tells whether a batch is
            the same, whatever a planner makes of it. None in directories that do not have it.
    """

    plan: PhysicalPlan
    stats: PlanStats
    merged: LogicalPlan | None = None

    def is_of(self, merged: LogicalPlan, logical: LogicalPlan) -> bool:
        """Whether this is a run of the batch `merged`, of which the rules make `logical` today."""
        if self.merged is not None:
            return self.merged == merged
        return self.plan.logical in (logical, from_json(to_json(logical, added=False)))


def write_plan(directory: RunDirectory, kept: KeptPlan) -> None:
    """Write `plan.json`. A plan that no rule changed is there once."""
    merged = kept.merged
    unchanged = merged == kept.plan.logical
    directory.write_plan(
        {
            "plan": kept.plan.to_json(),
            "stats": kept.stats.to_json(),
            **({"merged": None if unchanged else to_json(merged)} if merged is not None else {}),
        }
    )


def read_plan(directory: RunDirectory) -> KeptPlan:
    """The plan that a run began with. Raises `RunDirectoryError` when the file is damaged, or of a
    Halo whose plans are read differently now."""
    document = directory.read_plan()
    try:
        plan = PhysicalPlan.from_json(document["plan"])
        merged: LogicalPlan | None = None
        if "merged" in document:
            written = document["merged"]
            merged = plan.logical if written is None else from_json(written)
        kept = KeptPlan(plan, PlanStats.from_json(document["stats"]), merged)
    except PlanError as error:
        raise _of_another_version(directory, str(error)) from error
    except (KeyError, TypeError, ValueError, HaloError) as error:
        raise RunDirectoryError(f"{directory.plan} is damaged: {error!r}") from error
    # The journal knows operators by fingerprint: with other ones nothing recorded would be found.
    for op in plan.logical.walk_all():
        if op.fingerprint not in plan.priority:
            raise _of_another_version(directory, f"{op!r} is known by another fingerprint there")
    return kept


def refuse_another_plan(directory: RunDirectory, plan: LogicalPlan) -> None:
    """Raise `RunDirectoryError` unless the queries of `plan` are those that the run began with."""
    began = dict(read_plan(directory).plan.logical.outputs)
    for name, result in plan.outputs:
        if name not in began:
            raise RunDirectoryError(
                f"{directory.path} has no query {name!r}; it holds: {', '.join(began)}. Resume it "
                "with the workflows it began with, or choose another --out"
            )
        if began[name] != result:
            raise RunDirectoryError(
                f"query {name!r} is not what {directory.path} began with: the workflow, its "
                "settings or the rows have changed since. Undo the change to resume, or start "
                "again in another directory"
            )


def _of_another_version(directory: RunDirectory, problem: str) -> RunDirectoryError:
    version = directory.manifest.get("halo")
    writer = f"Halo {version}" if version else "a Halo from before versions were written down"
    return RunDirectoryError(
        f"{directory.plan} was written by {writer}, and this Halo cannot read its plan: {problem}. "
        "Continue the run with that Halo, or start again in another directory"
    )
