"""The rule driver: applies named rules to a plan until none changes it, and checks each of them.

After every rule the plan must be legal and promise what it promised: the same queries over the same
rows in the same order, the same sampled and writing calls. A rule that breaks a promise, runs in a
circle or never ends is a defect, and the error names it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field

from planner.context import PlanContext
from planner.errors import InvariantError, PlanError
from planner.logical import CALLS, Effect, LogicalPlan, Op, Scan
from planner.stats import OpStats
from planner.verify import verify

RuleFunction = Callable[[LogicalPlan, PlanContext], LogicalPlan]

MAX_PASSES = 12
"""Passes over all rules before the driver says that they never end. A rule's change may let an
earlier one apply again; real plans settle in two to four."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One rewrite rule.

    Attributes:
        apply: the function, in a file of its name. It returns the plan it was given when there is
            nothing to do.
        default: whether it is on unless switched off. `unsafe_` rules, which change the text that
            a model sees, are off unless switched on.
        drops_unread: whether it may lose sampled calls whose answers nobody reads.
    """

    apply: RuleFunction
    default: bool = True
    drops_unread: bool = False

    @property
    def name(self) -> str:
        return self.apply.__name__

    @property
    def summary(self) -> str:
        """The first paragraph of the rule's docstring, on one line."""
        return " ".join((self.apply.__doc__ or "").partition("\n\n")[0].split())


@dataclass(frozen=True, slots=True)
class Saving:
    """What a rule saves by estimate: calls, and tokens in and out. Negative where it costs."""

    calls: float = 0.0
    input_tokens: float = 0.0
    output_tokens: float = 0.0

    @classmethod
    def between(cls, before: OpStats, after: OpStats) -> Saving:
        return cls(
            before.calls - after.calls,
            before.input_tokens - after.input_tokens,
            before.output_tokens - after.output_tokens,
        )

    def __add__(self, other: Saving) -> Saving:
        return Saving(
            self.calls + other.calls,
            self.input_tokens + other.input_tokens,
            self.output_tokens + other.output_tokens,
        )


@dataclass(frozen=True, slots=True)
class Step:
    """One application of one rule. `after` is `before` where it changed nothing."""

    rule: str
    number: int
    before: LogicalPlan
    after: LogicalPlan

    @property
    def changed(self) -> bool:
        return self.before.fingerprint != self.after.fingerprint


@dataclass(frozen=True)
class Rewritten:
    """A rewritten plan and how it came about.

    Attributes:
        merged: the plan before the rules, `plan` after them.
        steps: every application of a rule, in order, those that changed nothing included.
        off: the names of rules that were switched off, and of unsafe ones that were not on.
    """

    merged: LogicalPlan
    plan: LogicalPlan
    steps: tuple[Step, ...] = ()
    off: tuple[str, ...] = ()
    context: PlanContext = field(default_factory=PlanContext)

    @property
    def changed(self) -> tuple[str, ...]:
        """The rules that changed something, in order of their first change."""
        return tuple(dict.fromkeys(step.rule for step in self.steps if step.changed))

    def savings(self) -> dict[str, Saving]:
        """What each rule that changed something saves, by the estimates of the context."""
        found: dict[str, Saving] = {}
        for step in self.steps:
            if step.changed:
                before = self.context.stats(step.before).total
                after = self.context.stats(step.after).total
                saving = Saving.between(before, after)
                found[step.rule] = found.get(step.rule, Saving()) + saving
        return found


def rewrite(
    plan: LogicalPlan,
    context: PlanContext | None = None,
    *,
    rules: Sequence[Rule] | None = None,
    off: Collection[str] = (),
    on: Collection[str] = (),
    max_passes: int = MAX_PASSES,
) -> Rewritten:
    """Apply `rules` (those of `planner.rules.RULES`) in order, pass after pass, until a pass
    changes nothing.

    Args:
        off: names of rules not to apply.
        on: names of rules to apply although they are off by default.

    Raises `PlanError` for a name that no rule has, `InvariantError` naming the rule that broke a
    promise, ran in a circle or did not end.
    """
    if rules is None:
        from planner.rules import RULES

        rules = RULES
    context = context or PlanContext()
    _check_names([rule.name for rule in rules], [*off, *on])
    active = [r for r in rules if r.name not in off and (r.default or r.name in on)]
    resting = tuple(r.name for r in rules if r not in active)
    steps: list[Step] = []
    seen = {plan.fingerprint: 0}
    current = plan
    for number in range(1, max_passes + 1):
        began = current
        for rule in active:
            after = rule.apply(current, context)
            steps.append(Step(rule.name, number, current, after))
            if after.fingerprint != current.fingerprint:
                check_rewrite(current, after, rule)
                current = after
        if current.fingerprint == began.fingerprint:
            return Rewritten(plan, current, tuple(steps), resting, context)
        if current.fingerprint in seen:
            raise InvariantError(
                f"the rules run in a circle: after pass {number} the plan is that of pass "
                f"{seen[current.fingerprint]} again; changed by {_changers(steps, number)}"
                + _both(began, current)
            )
        seen[current.fingerprint] = number
    raise InvariantError(
        f"the rules do not end: pass {max_passes} still changed the plan, by "
        f"{_changers(steps, max_passes)}{_both(steps[-len(active)].before, current)}"
    )


def check_rewrite(before: LogicalPlan, after: LogicalPlan, rule: Rule) -> None:
    """Raise `InvariantError` naming `rule` unless `after` is legal and promises what `before` did:

    - the same queries, in order, each over rows of the same kind, and over the same scan where they
      are scanned;
    - the same sampled and writing calls, each once (a rule may lose sampled calls that nobody reads
      if it says so);
    - no call that is not in `before` gains an effect.
    """
    try:
        verify(after)
    except (InvariantError, PlanError) as error:
        raise InvariantError(f"rule {rule.name} made an illegal plan: {error}") from error
    names = [name for name, _ in before.outputs]
    if [name for name, _ in after.outputs] != names:
        raise InvariantError(
            f"rule {rule.name} changed the queries from {names} to "
            f"{[name for name, _ in after.outputs]}"
        )
    for (name, old), (_, new) in zip(before.outputs, after.outputs, strict=True):
        was, now = old.rows.base, new.rows.base
        if was.kind != now.kind or (isinstance(was, Scan) and was != now):
            raise InvariantError(
                f"rule {rule.name} changed the rows of query {name!r} from those of "
                f"{was!r} to those of {now!r}"
            )
    told_before, told_after = _told_apart(before), _told_apart(after)
    for effect in (Effect.SAMPLED, Effect.WRITE):
        were = {call for call, its in told_before.items() if its is effect}
        are = {call for call, its in told_after.items() if its is effect}
        if gained := sorted(are - were):
            raise InvariantError(
                f"rule {rule.name} made {effect.value} calls that nobody wrote: {gained}"
            )
        lost = sorted(were - are)
        if lost and not (effect is Effect.SAMPLED and rule.drops_unread):
            raise InvariantError(f"rule {rule.name} lost the {effect.value} calls {lost}")


def _told_apart(plan: LogicalPlan) -> dict[str, Effect]:
    """The effects of the calls that have an identity. `verify` has seen that each is one call."""
    return {
        call_id: op.effect
        for op in plan.walk_all()
        if isinstance(op, CALLS) and (call_id := _call_id(op))
    }


def _call_id(op: Op) -> str:
    call_id: str = getattr(op, "call_id", "")
    return call_id


def _check_names(known: Sequence[str], named: Iterable[str]) -> None:
    for name in named:
        if name not in known:
            raise PlanError(f"no rule is named {name!r}; the rules are: {', '.join(known)}")


def _changers(steps: Sequence[Step], number: int) -> str:
    return ", ".join(step.rule for step in steps if step.number == number and step.changed)


def _both(first: LogicalPlan, second: LogicalPlan) -> str:
    from planner.explain import explain

    return f"\n--- before\n{explain(first)}\n--- after\n{explain(second)}"
