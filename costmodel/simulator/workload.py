"""What the simulator runs: operations over groups of rows.

An operation makes calls, some for each row. Rows are taken in groups; the rows of a group are alike
and flow through the operations first in, first out, each as soon as what it needs is there. With
one row a group the simulation is exact; with larger groups it is as much faster.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import inf, isnan

from costmodel.errors import ProfileError


@dataclass(frozen=True, slots=True)
class PromptPart:
    """A piece of a prompt. Prompts that start with equal keys share those tokens.

    Attributes:
        key: names the content: equal keys are equal text (of the same row, when `per_row`).
        tokens: of one row.
        per_row: whether the text differs between rows.
    """

    key: str
    tokens: int
    per_row: bool = False


@dataclass(frozen=True, slots=True)
class ModelWork:
    """A model call: the prompt in its order, and the answer. The answer's own cache entry has the
    key `answer:<operation>`, which a later prompt may go on with."""

    model: str
    prompt: tuple[PromptPart, ...]
    output_tokens: int

    @property
    def prompt_tokens(self) -> int:
        return sum(part.tokens for part in self.prompt)


@dataclass(frozen=True, slots=True)
class ToolWork:
    """A tool call on a lane. `spread` is the coefficient of variation of its latency, which is
    drawn from a Gamma distribution by the simulator's seed; 0 makes it constant."""

    lane: str
    latency_s: float
    spread: float = 0.0


@dataclass(frozen=True, slots=True)
class Operation:
    """One operator of the plan.

    Attributes:
        inputs: positions of the operations that must end before, for the same row.
        calls_per_row: below 1 where rows share calls or skip them, above 1 in maps.
        prompt_tokens, output_tokens: for each row, instead of those of `work` (groups of one row);
            the prompt tokens replace those of the last part.
        weight: for objectives, how much a row of this operation counts.
    """

    name: str
    work: ModelWork | ToolWork
    inputs: tuple[int, ...] = ()
    calls_per_row: float = 1.0
    prompt_tokens: Sequence[int] | None = None
    output_tokens: Sequence[int] | None = None


@dataclass(frozen=True)
class Workload:
    """Operations, inputs before users, over groups of rows.

    Attributes:
        group_rows: rows of each group.
        arrival_s: when each group arrives; None for all at the start.
        priority: for each group, how much its lateness counts (objectives only).
        deadline_s: for each group, when it should have ended; None without deadlines.
    """

    operations: tuple[Operation, ...]
    group_rows: tuple[int, ...]
    arrival_s: tuple[float, ...] | None = None
    priority: tuple[float, ...] | None = None
    deadline_s: tuple[float, ...] | None = None
    names: tuple[str, ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        for position, op in enumerate(self.operations):
            if any(not 0 <= i < position for i in op.inputs):
                raise ProfileError(
                    f"operation {op.name!r} at {position} has inputs {op.inputs}; "
                    "inputs come before users"
                )
            if op.calls_per_row < 0:
                raise ProfileError(f"operation {op.name!r}: calls_per_row is {op.calls_per_row}")
            work = op.work
            if isinstance(work, ModelWork) and (
                work.output_tokens < 0 or any(part.tokens < 0 for part in work.prompt)
            ):
                raise ProfileError(f"operation {op.name!r}: a token count is negative")
            if isinstance(work, ToolWork) and (work.latency_s < 0 or work.spread < 0):
                raise ProfileError(f"operation {op.name!r}: a latency is negative")
        if any(rows < 0 for rows in self.group_rows):
            raise ProfileError("a group has a negative number of rows")
        for name in ("arrival_s", "priority", "deadline_s"):
            values = getattr(self, name)
            if values is not None and len(values) != len(self.group_rows):
                raise ProfileError(f"{name} has {len(values)} values for {len(self.group_rows)}")
            # A deadline may be infinite, or before the arrival: then it is missed, and said so.
            deadline = name == "deadline_s"
            for value in values or ():
                if isnan(value) or (not deadline and not 0 <= value < inf):
                    raise ProfileError(f"{name} of a group is {value}, which no group can have")

    @property
    def rows(self) -> int:
        return sum(self.group_rows)


def even_groups(rows: int, groups: int) -> tuple[int, ...]:
    """Sizes of `groups` groups (fewer when there are fewer rows).

    Example:
        >>> even_groups(10, 4)
        (2, 3, 2, 3)
    """
    groups = max(1, min(groups, rows))
    return tuple(rows * (g + 1) // groups - rows * g // groups for g in range(groups))
