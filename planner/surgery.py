"""Cutting and joining plans: what several rules do with operators, bodies and their inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

from planner.bodies import bodies_innermost_first
from planner.logical import (
    CALLS,
    Body,
    Column,
    Effect,
    LogicalPlan,
    Op,
    Ordered,
    Param,
    Prompt,
    Ref,
    Relation,
    Result,
    Subset,
    transform,
    walk,
)

Rewrite = Callable[[Op], Op]


def transform_plan(plan: LogicalPlan, change: Rewrite, *kinds: type[Op]) -> LogicalPlan:
    """`plan` with `change` applied to every operator of every scope, bottom-up, bodies innermost
    first; the plan itself when nothing changes. With `kinds`, nothing is walked unless the plan has
    operators of one of them."""
    return rebuild_plan(plan, lambda _, op: change(op), *kinds)


def rebuild_plan(
    plan: LogicalPlan, change: Callable[[Op, Op], Op], *kinds: type[Op]
) -> LogicalPlan:
    """The same with `change` told what the operator was before its inputs and bodies changed:
    (original, over changed ones)."""
    if kinds and not any(has(plan, kind) for kind in kinds):
        return plan
    bodies: dict[str, Body] = {}

    def rebuild(original: Op, op: Op) -> Op:
        return change(original, _with_bodies(op, bodies))

    for body in bodies_innermost_first(plan.walk()):
        rebuilt: dict[Op, Op] = {}
        interned: dict[str, Op] = {}
        for op in body.walk():
            new = rebuild(op, over(op, rebuilt))
            rebuilt[op] = interned.setdefault(new.fingerprint, new)
        result = rebuilt[body.result]
        same = result.fingerprint == body.result.fingerprint
        bodies[body.fingerprint] = body if same else Body(body.n_params, result)
    return rebuild_rows(plan, rebuild)


def transform_rows(plan: LogicalPlan, change: Rewrite) -> LogicalPlan:
    """The same for the row scope alone: relations, and values outside bodies."""
    return rebuild_rows(plan, lambda _, op: change(op))


def rebuild_rows(plan: LogicalPlan, change: Callable[[Op, Op], Op]) -> LogicalPlan:
    """The same with `change` told what the operator was before its inputs changed: (original,
    over changed inputs)."""
    rebuilt: dict[Op, Op] = {}
    interned: dict[str, Op] = {}
    for op in plan.walk():
        new = change(op, over(op, rebuilt))
        rebuilt[op] = interned.setdefault(new.fingerprint, new)
    outputs: list[tuple[str, Result]] = []
    for name, old in plan.outputs:
        root = rebuilt[old]
        assert isinstance(root, Result)
        outputs.append((name, old if root.fingerprint == old.fingerprint else root))
    if all(new is old for (_, new), (_, old) in zip(outputs, plan.outputs, strict=True)):
        return plan
    return LogicalPlan(tuple(outputs))


def over(op: Op, changed: Mapping[Op, Op]) -> Op:
    """`op` over what its inputs have become."""
    inputs = tuple(changed.get(i, i) for i in op.inputs)
    after = tuple(changed.get(a, a) for a in op.after)
    if all(a is b for a, b in zip(inputs + after, op.dependencies, strict=True)):
        return op
    return replace(op, inputs=inputs, after=after)


def has(plan: LogicalPlan, kind: type[Op]) -> bool:
    """Whether the plan has an operator of a kind, in any scope."""
    return any(issubclass(each, kind) for each in plan.kinds)


def _with_bodies(op: Op, bodies: dict[str, Body]) -> Op:
    """`op` with its bodies replaced by what they have become."""
    if not op.bodies:
        return op
    changes: dict[str, Any] = {}
    for field in fields(op):
        body = getattr(op, field.name)
        if isinstance(body, Body) and bodies[body.fingerprint].fingerprint != body.fingerprint:
            changes[field.name] = bodies[body.fingerprint]
    return replace(op, **changes) if changes else op


# --- effects -------------------------------------------------------------------------------------


def row_cone(ops: Iterable[Op]) -> Iterator[Op]:
    """`ops` and the values of the same row that they are computed from: not what the rows are made
    of. Iterative."""
    done: set[Op] = set()
    stack = list(ops)
    while stack:
        op = stack.pop()
        if op not in done:
            done.add(op)
            yield op
            if not isinstance(op, Column):
                stack.extend(op.dependencies)


def has_write(op: Op) -> bool:
    """Whether a write happens to compute `op`: in it, or in a value that it depends on."""
    return any(each.effect is Effect.WRITE for each in row_cone((op,)))


def is_free(ops: Iterable[Op]) -> bool:
    """Whether `ops`, and the values that they are computed from, ask no engine, tool or
    database."""
    for op in row_cone(ops):
        if isinstance(op, CALLS):
            return False
        for body in bodies_innermost_first((op,)):
            if any(isinstance(inner, CALLS) for inner in body.walk()):
                return False
    return True


def is_pure(op: Op) -> bool:
    """Whether nothing that `op` is computed from is sampled or writes."""
    return all(each.effect is Effect.PURE for each in row_cone((op,)))


def after_writes(value: Op, unread: Iterable[Op]) -> Op:
    """`value`, once the writes in `unread` have happened: what is not read any more is dropped, but
    not what it does."""
    writes = tuple(op for op in dict.fromkeys(unread) if has_write(op))
    return Ordered((value,), after=writes) if writes else value


# --- inputs --------------------------------------------------------------------------------------


def keep_inputs(op: Op, kept: Sequence[int], **changes: Any) -> Op:
    """`op` with the inputs at the positions `kept`, in that order, and with `changes`. Dropped
    inputs that write come before it all the same."""
    dropped = [each for i, each in enumerate(op.inputs) if i not in kept]
    after = [each for each in dropped if each not in op.after and has_write(each)]
    changes["inputs"] = tuple(op.inputs[i] for i in kept)
    if after:
        changes["after"] = (*op.after, *after)
    return replace(op, **changes)


def splice(
    prompt: Prompt,
    inputs: Sequence[Op],
    open_up: Callable[[Op], tuple[Prompt, tuple[Op, ...]] | None],
) -> tuple[Prompt, tuple[Op, ...]]:
    """`prompt` with each reference for which `open_up` gives a prompt (over operators of its own)
    replaced by it; and the inputs that it is over now."""
    found: dict[Op, int] = {}
    segments: list[str | Ref] = []

    def add(parts: Prompt, read: Sequence[Op]) -> None:
        for part in parts.segments:
            if isinstance(part, str):
                segments.append(part)
            else:
                segments.append(Ref(found.setdefault(read[part.index], len(found))))

    for segment in prompt.segments:
        if isinstance(segment, str):
            segments.append(segment)
            continue
        opened = open_up(inputs[segment.index])
        if opened is None:
            add(Prompt((Ref(0),)), (inputs[segment.index],))
        else:
            add(*opened)
    return joined_literals(Prompt(tuple(segments))), tuple(found)


def joined_literals(prompt: Prompt) -> Prompt:
    """The same text with literals next to each other joined, and empty ones left out.

    Example:
        >>> joined_literals(Prompt(("a", "", "b", Ref(0), ""))).segments
        ('ab', Ref(index=0))
    """
    segments: list[str | Ref] = []
    for segment in prompt.segments:
        if isinstance(segment, str) and segments and isinstance(segments[-1], str):
            segments[-1] += segment
        elif segment != "":
            segments.append(segment)
    return prompt if tuple(segments) == prompt.segments else Prompt(tuple(segments))


# --- bodies --------------------------------------------------------------------------------------


def inlined(body: Body, arguments: Sequence[Op]) -> Op:
    """The result of a body computed in the scope of its `arguments`, one for each parameter."""

    def bind(op: Op) -> Op:
        return arguments[op.index] if isinstance(op, Param) else op

    (result,) = transform((body.result,), bind)
    return result


def used_params(bodies: Iterable[Body]) -> set[int]:
    """The parameters that some of `bodies` read."""
    return {op.index for body in bodies for op in body.walk() if isinstance(op, Param)}


def rebound(body: Body, n_params: int, params: dict[int, Op]) -> Body:
    """`body` with its parameters replaced by `params` (all that it reads), over `n_params`."""

    def bind(op: Op) -> Op:
        return params[op.index] if isinstance(op, Param) else op

    (result,) = transform((body.result,), bind)
    return Body(n_params, result)


def readers(plan: LogicalPlan) -> dict[str, int]:
    """How many operators of the same scope read each operator as an input or wait for it, by
    fingerprint, over all scopes."""
    counts: dict[str, int] = {}
    for op in plan.walk_all():
        for dependency in dict.fromkeys(op.dependencies):
            counts[dependency.fingerprint] = counts.get(dependency.fingerprint, 0) + 1
    return counts


# --- relations -----------------------------------------------------------------------------------


def relation_readers(plan: LogicalPlan) -> dict[str, int]:
    """How many relations and results read the rows of each relation, by fingerprint; its columns
    are read by values, which are not counted."""
    counts: dict[str, int] = {}
    for op in plan.walk():
        if isinstance(op, Relation | Result):
            for each in dict.fromkeys(op.inputs):
                if isinstance(each, Relation):
                    counts[each.fingerprint] = counts.get(each.fingerprint, 0) + 1
    return counts


def move_below(
    plan: LogicalPlan, below: Callable[[Subset, Relation], Relation | None]
) -> LogicalPlan:
    """Move subsets below the bases that they are over, as far as it goes.

    `below` gives the base made of fewer rows that has the rows of the subset, or None. A base that
    others read too stays as it is. Values of the base's rows become values of the new base's rows.
    """
    while True:
        moved = _moved_below(plan, below)
        if moved is plan:
            return plan
        plan = moved


def _moved_below(
    plan: LogicalPlan, below: Callable[[Subset, Relation], Relation | None]
) -> LogicalPlan:
    """Each base that can be moved, once; the plan itself when there is none."""
    read = relation_readers(plan)
    moved: dict[Op, Relation] = {}

    def move(original: Op, op: Op) -> Op:
        if not isinstance(op, Subset) or not isinstance(original, Subset) or op.after:
            return op
        made = op.rows
        if read[original.rows.fingerprint] > 1 or made != original.rows:
            # What lies below has changed in this pass, and its readers are not renamed yet.
            return op
        found = below(op, made)
        if found is None:
            return op
        moved[made] = found
        return found

    def rename(_: Op, op: Op) -> Op:
        if isinstance(op, Column) and op.inputs[0] in moved:
            return replace(op, inputs=(moved[op.inputs[0]],))
        return op

    changed = rebuild_rows(plan, move)
    return rebuild_rows(changed, rename) if moved else plan


def in_terms_of(value: Op, made: Relation, known: Mapping[str, Op]) -> Op | None:
    """A value over `made` as one over the rows that `made` is made of. `known`: what its columns
    are; None when the value needs one that is not there."""
    unknown = False

    def substitute(op: Op) -> Op:
        nonlocal unknown
        if isinstance(op, Column) and op.inputs[0] == made:
            unknown = unknown or op.name not in known
            return known.get(op.name, op)
        return op

    found: dict[Op, Op] = {}
    for op in walk((value,), stop_at=made):
        found[op] = substitute(op if op == made else over(op, found))
    return None if unknown else found[value]
