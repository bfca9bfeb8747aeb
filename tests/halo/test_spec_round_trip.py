"""Random documents: load, dump, load gives the same plan."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

import halo
from halo.spec import dump_spec, load_spec_text
from halo.spec.condition import condition_text, parse_condition
from halo.spec.document import read_document
from halo.spec.dump import to_yaml
from halo.spec.template import Reference, parse_template, template_text
from planner.verify import verify

Draw = Callable[[st.SearchStrategy[Any]], Any]
Step = dict[str, Any]

COLUMNS = ("question", "items", "a column")
PLAIN = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=12)
WORDS = st.sampled_from(
    ["", "Who won? ", "yes", "12:30", "0o17", "1e5", "{", "{{", "}}", "'", "\n", "a: b\n\n c", "#"]
)
TYPES = st.recursive(
    st.sampled_from(
        ["text", "integer", "number", "boolean", "list of text", ["a", "b"], [1], ["x"]]
    ),
    lambda inner: st.dictionaries(st.sampled_from(["n", "text", "b c"]), inner, min_size=1),
    max_leaves=4,
) | st.just({"type": "array", "items": {"type": "integer"}, "minItems": 2})


@halo.tool(pure=True)
def search(query: str, k: int = 3) -> list[str]:
    """Searches."""
    return [query] * k


@halo.tool
def post(text: Any) -> str:
    """Posts."""
    return str(text)


TOOLS = {each.name: each.spec for each in (search, post)}


class _Writer:
    """Draws steps; every name is used once."""

    def __init__(self, draw: Draw) -> None:
        self.draw = draw
        self.count = 0

    def name(self) -> str:
        self.count += 1
        return f"{self.draw(st.sampled_from(['s', 'item', 'gen', 'value', 'ü-x']))}{self.count}"

    def block(self, known: list[str], depth: int) -> Step:
        known = list(known)
        steps: dict[str, Step] = {}
        for _ in range(self.draw(st.integers(1, 4))):
            step = self.step(known, depth)
            name = self.name()
            steps[name] = step
            known.append(name)
        returned = self.draw(
            st.none()
            | st.sampled_from(known)
            | st.dictionaries(WORDS, st.sampled_from(known), min_size=1, max_size=3)
        )
        return {"steps": steps} if returned is None else {"steps": steps, "return": returned}

    def body(self, known: list[str], depth: int) -> Step:
        if self.draw(st.booleans()):
            return self.step(known, depth - 1)
        return self.block(known, depth - 1)

    def step(self, known: list[str], depth: int) -> Step:
        kinds = [self.prompt, self.prompt, self.choose, self.tool, self.sql, self.value, self.agent]
        nested = [self.map, self.reduce, self.when, self.loop]
        make = self.draw(st.sampled_from(kinds if depth <= 0 else kinds + nested))
        step: Step = make(known, depth)
        return step

    def ref(self, known: list[str]) -> str:
        base: str = self.draw(st.sampled_from([*known, "row['a column']"]))
        keys: str = self.draw(st.sampled_from(["", "", ".x", "[0]", "['b c'].d"]))
        return base + keys

    def text(self, known: list[str]) -> str:
        parts = self.draw(st.lists(WORDS | st.just(None), min_size=1, max_size=4))
        return "".join(
            f"{{{{ {self.ref(known)} }}}}" if part is None else template_text((part,))
            for part in parts
            if part != ""
        )

    def sampling(self) -> Step:
        fields: Step = {}
        if self.draw(st.booleans()):
            fields["temperature"] = 0.5
            if self.draw(st.booleans()):
                fields["id"] = self.name()
        if self.draw(st.booleans()):
            fields["model"] = self.draw(st.sampled_from(["", "small", "large"]))
        return fields

    def prompt(self, known: list[str], depth: int) -> Step:
        step = {"prompt": self.text(known), **self.sampling()}
        if self.draw(st.booleans()):
            step["out"] = self.draw(TYPES)
        if self.draw(st.booleans()):
            step |= {"system": self.text(known), "max_tokens": 9, "stop": ["\n", "no"]}
        return step

    def choose(self, known: list[str], depth: int) -> Step:
        options = self.draw(st.lists(WORDS.filter(bool), min_size=2, max_size=3, unique=True))
        return {"choose": options, "prompt": self.text(known), **self.sampling()}

    def agent(self, known: list[str], depth: int) -> Step:
        tools = self.draw(st.sampled_from([[], ["search"], ["post", "search"]]))
        return {"agent": {"prompt": self.text(known), "tools": tools, "max_turns": 2}}

    def tool(self, known: list[str], depth: int) -> Step:
        if self.draw(st.booleans()):
            return {"tool": "search", "args": {"query": self.text(known) or "x", "k": 2}}
        return {"tool": "post", "args": {"text": self.literal(known)}}

    def sql(self, known: list[str], depth: int) -> Step:
        if self.draw(st.booleans()):
            return {"query": self.ref(known), "max_rows": 5}
        writes = self.draw(st.booleans())
        params = {"b": self.ref(known), "a": 1.5}
        return {"sql": "SELECT $a, $b", "params": params, "database": "shop", "writes": writes}

    def literal(self, known: list[str]) -> Any:
        plain = WORDS.map(lambda word: template_text((word,)) if word else "")
        constant = self.draw(
            st.recursive(
                st.none() | st.booleans() | st.integers() | st.floats(-1e9, 1e9) | plain,
                lambda inner: (
                    st.lists(inner, max_size=2) | st.dictionaries(PLAIN, inner, max_size=2)
                ),
                max_leaves=4,
            )
        )
        return self.draw(
            st.sampled_from(
                [constant, f"{{{{ {self.ref(known)} }}}}", {"k": self.text(known), "c": constant}]
            )
        )

    def value(self, known: list[str], depth: int) -> Step:
        match self.draw(st.integers(0, 2)):
            case 0:
                return {"value": self.literal(known)}
            case 1:
                return {"text": self.text(known)}
            case _:
                return {"condition": self.condition(known)}

    def condition(self, known: list[str]) -> str:
        left = f"{self.ref(known)} {self.draw(st.sampled_from(['==', '<', 'in', 'not in']))}"
        right = self.draw(st.sampled_from(["'it''s'", "3", "-1.5e3", "['a', 2]", "null"]))
        right = right.replace("''", "\\'")
        return self.draw(  # type: ignore[no-any-return]
            st.sampled_from(
                [
                    f"{left} {right}",
                    self.ref(known),
                    f"not {self.ref(known)} and ({left} {right} or truthy({self.ref(known)}))",
                ]
            )
        )

    def map(self, known: list[str], depth: int) -> Step:
        name = self.name()
        return {
            "foreach": self.draw(st.sampled_from(["items", self.ref(known)])),
            "as": name,
            "do": self.body([*known, name], depth),
        }

    def reduce(self, known: list[str], depth: int) -> Step:
        name = self.name()
        return {"reduce": "items", "as": name, "fan_in": 3, "do": self.body([*known, name], depth)}

    def when(self, known: list[str], depth: int) -> Step:
        step = {"when": self.condition(known), "then": self.body(known, depth)}
        return {**step, "else": self.body(known, depth)} if self.draw(st.booleans()) else step

    def loop(self, known: list[str], depth: int) -> Step:
        name = self.name()
        inside = [*known, name]
        test = self.condition(inside) if self.draw(st.booleans()) else self.block(inside, depth - 1)
        return {
            "loop": {
                "state": self.literal(known),
                "as": name,
                self.draw(st.sampled_from(["until", "while"])): test,
                "do": self.body(inside, depth),
            }
        }


@st.composite
def documents(draw: Draw) -> Step:
    writer = _Writer(draw)
    document = writer.block(["question", "items"], depth=2)
    known = ["question", "items", *document["steps"]]
    conditions = [writer.condition(known) for _ in range(draw(st.integers(0, 2)))]
    kept: Step = (
        {"where": conditions if draw(st.booleans()) else conditions[0]} if conditions else {}
    )
    if draw(st.booleans()):
        kept["limit"] = draw(st.integers(0, 9))
    if draw(st.booleans()):
        kept["offset"] = draw(st.integers(0, 9))
    return {
        "name": "random",
        "model": draw(st.sampled_from(["", "small"])),
        "tools": {name: {"python": f"tools.py:{name}"} for name in TOOLS},
        "databases": {"shop": "shop.duckdb"},
        **document,
        **kept,
    }


@settings(max_examples=200, deadline=None)
@given(documents())
def test_load_dump_load_is_the_same_plan(document: Step) -> None:
    from halo.errors import WorkflowError

    try:
        flow = load_spec_text(to_yaml(document), "random.yaml", tools=TOOLS)
    except WorkflowError as error:
        # What the static checks refuse is not to be dumped; nothing else may be wrong.
        refused = ("has no members", "has no field", "is a list", "is an object", "expected a list")
        refused = (*refused, "does not fit the tool", "must not write")
        assert any(words in str(error) for words in refused), error
        return
    traced = flow.trace("rows", COLUMNS)
    verify(traced.plan)
    text = dump_spec(traced)
    again = load_spec_text(text, "again.yaml", tools=TOOLS).trace("rows", COLUMNS)
    assert again.plan.fingerprint == traced.plan.fingerprint
    assert dump_spec(again) == text


@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats(allow_nan=False, allow_infinity=False)
        | PLAIN
        | WORDS,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(PLAIN, inner, max_size=3),
        max_leaves=8,
    )
)
def test_yaml_text_reads_back_as_the_value(value: Any) -> None:
    assert read_document(to_yaml({"value": value}), "x.yaml").value == {"value": value}


@given(
    st.lists(
        PLAIN
        | WORDS
        | st.builds(
            Reference,
            st.sampled_from(["a", "row", "ü-1"]),
            st.lists(PLAIN | st.integers(-9, 9), max_size=2).map(tuple),
        ),
        max_size=5,
    )
)
@example(["{", Reference("a"), "}"])
def test_templates_read_back_as_their_parts(parts: list[Any]) -> None:
    expected: list[Any] = []
    for part in parts:
        if isinstance(part, str) and expected and isinstance(expected[-1], str):
            expected[-1] += part
        elif part != "":
            expected.append(part)
    assert parse_template(template_text(tuple(expected))).parts == tuple(expected)


@given(
    st.recursive(
        st.sampled_from(["a.b", "3", "'x'", "row['a b'][0]", "true", "[1, 'y']"]),
        lambda inner: (
            st.builds("{} {} {}".format, inner, st.sampled_from(["and", "or"]), inner)
            | st.builds("({}) == ({})".format, inner, inner)
            | st.builds("not ({})".format, inner)
            | st.builds("truthy({})".format, inner)
        ),
        max_leaves=6,
    )
)
def test_conditions_read_back_as_themselves(text: str) -> None:
    condition = parse_condition(text)
    assert parse_condition(condition_text(condition)) == condition
