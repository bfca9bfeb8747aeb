"""Random plans that run without errors: every value has the type that its readers need."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from hypothesis import strategies as st

from planner.logical import (
    Agent,
    Body,
    Choose,
    Collect,
    Column,
    Compare,
    Const,
    Effect,
    Field,
    Filter,
    Flatten,
    Format,
    Generate,
    Group,
    Json,
    Limit,
    LogicalPlan,
    Loop,
    Map,
    Op,
    Ordered,
    Pairs,
    Param,
    Project,
    Prompt,
    Recover,
    Reduce,
    Ref,
    Relation,
    Result,
    Scan,
    Sort,
    Sql,
    SqlRows,
    Tool,
    ToolRef,
    When,
)

Draw = Callable[[st.SearchStrategy[Any]], Any]
WORDS = st.sampled_from(["", "Sum up ", "\n\nAbout ", "x", " in "])
LISTS = '{"type":"array","items":{"type":"string"},"minItems":0,"maxItems":3}'
TEXT, LIST, ANY = "text", "list", "any"
FIND = ToolRef("find", "", Effect.PURE)
DRAW = ToolRef("draw", "", Effect.SAMPLED)
NOTE = ToolRef("note", "", Effect.WRITE)


@dataclass
class Values:
    """The values of one scope, by type."""

    of: dict[str, list[Op]] = field(default_factory=lambda: {TEXT: [], LIST: [], ANY: []})

    def add(self, kind: str, op: Op) -> None:
        self.of[kind].append(op)

    def everything(self) -> list[Op]:
        return [op for ops in self.of.values() for op in ops]


class Maker:
    """Grows a plan."""

    def __init__(self, draw: Draw, *, writes: bool, sampled: bool) -> None:
        self.draw = draw
        self.writes = writes
        self.sampled = sampled
        self.ids = 0

    def call_id(self) -> str:
        self.ids += 1
        return f"q/{self.ids}"

    def pick(self, values: Sequence[Op]) -> Op:
        return self.draw(st.sampled_from(values))  # type: ignore[no-any-return]

    def some(self, values: Sequence[Op]) -> tuple[Op, ...]:
        return tuple(self.draw(st.lists(st.sampled_from(values), min_size=1, max_size=2)))

    def prompt(self, n_inputs: int) -> Prompt:
        pieces = WORDS | st.builds(Ref, st.integers(0, n_inputs - 1))
        drawn = self.draw(st.lists(pieces, max_size=3))
        return Prompt((*drawn, Ref(self.draw(st.integers(0, n_inputs - 1)))))

    def grow(self, values: Values, steps: int, depth: int) -> None:
        makers = [self._text, self._model, self._choice, self._outside, self._object, self._compare]
        if depth:
            makers += [self._map, self._when, self._loop]
        for _ in range(steps):
            self.draw(st.sampled_from(makers))(values, depth)

    def _inputs(self, values: Values) -> tuple[Op, ...]:
        return self.some(values.everything())

    def _text(self, values: Values, depth: int) -> None:
        if self.draw(st.booleans()):
            values.add(TEXT, Const.of(self.draw(st.sampled_from(["a", "b", ""]))))
            return
        inputs = self._inputs(values)
        values.add(TEXT, Format(inputs, self.prompt(len(inputs))))

    def _model(self, values: Values, depth: int) -> None:
        inputs = self._inputs(values)
        temperature = 1.0 if self.sampled and self.draw(st.integers(0, 3)) == 0 else 0.0
        call_id = self.call_id() if temperature else ""
        lists = self.draw(st.booleans())
        made = Generate(
            inputs,
            self.draw(st.sampled_from(["m", "n"])),
            self.prompt(len(inputs)),
            self.draw(st.none() | st.just(Prompt(("Be brief.",)))),
            64,
            temperature,
            self.draw(st.sampled_from([1.0, 0.9])),
            call_id,
            LISTS if lists else None,
        )
        values.add(LIST if lists else TEXT, made)
        if self.draw(st.integers(0, 5)) == 0:
            quiet = not self.sampled
            tool = FIND if quiet else DRAW
            agent = Agent(
                inputs,
                "m",
                self.prompt(len(inputs)),
                tools=(tool,),
                max_turns=2,
                call_id="" if quiet else self.call_id(),
            )
            values.add(TEXT, agent)

    def _choice(self, values: Values, depth: int) -> None:
        inputs = self._inputs(values)
        options = self.draw(st.sampled_from([("yes", "no"), ("a", "b", ""), ("x", "xy")]))
        made = Choose(inputs, "m", self.prompt(len(inputs)), options=options, max_tokens=9)
        values.add(TEXT, made)
        if self.draw(st.booleans()):
            values.add(ANY, Compare((made, Const.of(options[0])), "=="))

    def _outside(self, values: Values, depth: int) -> None:
        inputs = self.some(values.of[TEXT])
        params = tuple(f"p{i}" for i in range(len(inputs)))[::-1]
        kind = self.draw(st.integers(0, 4))
        if kind == 0 and self.writes:
            write = Tool(inputs, NOTE, params, self.call_id())
            values.add(ANY, write)
            values.add(TEXT, Ordered((self.pick(values.of[TEXT]),), after=(write,)))
        elif kind == 1:
            text = self.draw(
                st.sampled_from(["SELECT a FROM t WHERE k = $p0", "select a from t where k=$p0"])
            )
            values.add(ANY, Sql(inputs[:1], "", text, ("p0",)))
        elif kind == 2 and self.sampled:
            values.add(TEXT, Tool(inputs, DRAW, params, self.call_id()))
        else:
            values.add(TEXT, Recover((Tool(inputs, FIND, params),)))

    def _object(self, values: Values, depth: int) -> None:
        inputs = self._inputs(values)
        names = tuple(f"n{i}" for i in range(len(inputs)))
        whole = Project(inputs, names)
        values.add(ANY, whole)
        values.add(ANY, Field((whole,), self.draw(st.sampled_from(names))))

    def _compare(self, values: Values, depth: int) -> None:
        left, right = (self.pick(values.everything()) for _ in range(2))
        operator = self.draw(st.sampled_from(["==", "!=", "and", "or"]))
        values.add(ANY, Compare((left, right), operator, self.draw(st.booleans())))
        one = self.draw(st.sampled_from(["not", "truthy", "is_null"]))
        values.add(ANY, Compare((left,), one))

    # --- bodies ----------------------------------------------------------------------------------

    def body(self, kinds: Sequence[str], result: str, depth: int) -> Body:
        inside = Values()
        for i, kind in enumerate(kinds):
            inside.add(kind, Param((), i))
        if not inside.of[TEXT]:
            inside.add(TEXT, Const.of("c"))
        self.grow(inside, self.draw(st.integers(0, 3)), depth - 1)
        candidates = inside.of[result] or [Const.of([] if result == LIST else "d")]
        return Body(len(kinds), self.pick(candidates))

    def _captures(self, values: Values) -> tuple[list[str], list[Op]]:
        chosen = self.draw(
            st.lists(
                st.sampled_from([(k, op) for k, ops in values.of.items() for op in ops]), max_size=2
            )
        )
        return [kind for kind, _ in chosen], [op for _, op in chosen]

    def _map(self, values: Values, depth: int) -> None:
        if not values.of[LIST]:
            return
        kinds, captures = self._captures(values)
        listed = self.pick(values.of[LIST])
        mapped = Map((listed, *captures), self.body([TEXT, *kinds], TEXT, depth))
        values.add(LIST, mapped)
        if self.draw(st.booleans()):
            # One more element, since there is nothing to reduce in an empty list.
            whole = Map((Const.of(["a", "b", "c"]), *captures), mapped.body)
            merge = self.body([LIST, *kinds], TEXT, depth)
            values.add(TEXT, Reduce((whole, *captures), merge, 2))

    def _when(self, values: Values, depth: int) -> None:
        kinds, captures = self._captures(values)
        condition = self.pick([*values.everything(), Const.of(True), Const.of(0)])
        then = self.body(kinds, TEXT, depth)
        same = self.draw(st.integers(0, 3)) == 0 and not any(
            op.effect is not Effect.PURE for op in then.walk()
        )
        otherwise = then if same else self.body(kinds, TEXT, depth)
        values.add(TEXT, When((condition, *captures), then, otherwise))

    def _loop(self, values: Values, depth: int) -> None:
        kinds, captures = self._captures(values)
        condition = self.body([TEXT, *kinds], self.draw(st.sampled_from([TEXT, ANY])), 0)
        step = self.body([TEXT, *kinds], TEXT, depth)
        state = self.pick(values.of[TEXT])
        rounds = self.draw(st.integers(1, 3))
        values.add(TEXT, Loop((state, *captures), condition, step, rounds))

    # --- relations -------------------------------------------------------------------------------

    def subset(self, base: Relation, values: Values) -> Relation:
        rows = base
        for _ in range(self.draw(st.integers(0, 3))):
            if self.draw(st.integers(0, 3)):
                rows = Filter((rows, self.pick(values.everything())))
            else:
                rows = Limit((rows,), self.draw(st.integers(0, 4)), self.draw(st.integers(0, 1)))
        return rows

    def derived(self, rows: Relation, values: Values) -> tuple[Relation, Values]:
        """A relation made of `rows`, and its columns."""
        carried = self.draw(st.lists(st.sampled_from(values.of[TEXT]), min_size=1, max_size=2))
        names = tuple(f"c{i}" for i in range(len(carried)))
        found = Values()
        made: Relation
        lists = values.of[LIST]
        kind = self.draw(st.integers(0, 5))
        if kind == 0 and lists:
            made = Flatten((rows, self.pick(lists), *carried), ("e", *names))
            found.add(TEXT, Column((made,), "e"))
        elif kind == 1:
            other = tuple(f"d{i}" for i in range(len(carried)))
            on = self.draw(st.sampled_from([(), (("c0", "d0"),)]))
            made = Pairs((rows, rows, *carried, *carried), (*names, *other), len(carried), on)
            found.add(TEXT, Column((made,), "d0"))
        elif kind == 2:
            values_of = self.pick(values.of[TEXT])
            made = Group((rows, *carried, values_of), (*names, "all"), len(carried))
            found.add(LIST, Column((made,), "all"))
        elif kind == 3:
            made = Sort((rows, *carried), names, ("-c0",))
        elif kind == 4:
            table = Collect((rows, *carried), names)
            made = SqlRows((table,), text="SELECT * FROM t", columns=("c0",), tables=("t",))
            names = ("c0",)
        else:
            made = Collect((rows, *carried), names)
        for name in names:
            found.add(TEXT, Column((made,), name))
        return made, found


@st.composite
def running_plans(
    draw: Draw, *, writes: bool = True, sampled: bool = True, relations: bool = True
) -> LogicalPlan:
    """A plan of one to three queries over the scan `rows` (columns `a`, `b`: texts; `tags`)."""
    maker = Maker(draw, writes=writes, sampled=sampled)
    base: Relation = Scan((), "rows", ("a", "b", "tags"))
    values = Values()
    values.add(TEXT, Column((base,), "a"))
    values.add(TEXT, Column((base,), "b"))
    values.add(LIST, Column((base,), "tags"))
    places: list[tuple[Relation, Values]] = []
    for _ in range(draw(st.integers(1, 3)) if relations else 1):
        maker.grow(values, draw(st.integers(1, 5)), depth=1)
        rows = maker.subset(base, values) if relations else base
        places.append((rows, values))
        base, values = maker.derived(rows, values)
    outputs: list[tuple[str, Result]] = []
    for number in range(draw(st.integers(1, 3))):
        rows, there = draw(st.sampled_from(places))
        outputs.append((f"q{number}", Result((maker.pick(there.everything()), rows))))
    return LogicalPlan(tuple(outputs))


def some_rows(count: int) -> dict[str, list[dict[str, Json]]]:
    """Rows for `running_plans`, some of them equal."""
    return {
        "rows": [
            {"a": f"a{i % 3}", "b": f"b{i % 2}", "tags": [f"t{j}" for j in range(i % 3)]}
            for i in range(count)
        ]
    }
