"""Every rule on its fixture; see `rule_harness`."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
from rule_harness import CASES, RESULT, RULE_FIXTURES, cases, check_case

import planner.rules
from planner.rewrite import Rule
from planner.rules import RULES


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_fixture(rule: Rule, request: pytest.FixtureRequest) -> None:
    rewriting = bool(request.config.getoption("--golden"))
    found = cases(rule.name)
    texts = [check_case(rule, case, golden=not rewriting) for case in found]
    if rewriting:
        written = [f"{case.text}{RESULT}{text}" for case, text in zip(found, texts, strict=True)]
        (RULE_FIXTURES / f"{rule.name}.txt").write_text(CASES.join(written) + "\n", "utf-8")


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_a_fixture_shows_the_rule_at_work_and_at_rest(rule: Rule) -> None:
    changes = [
        rule.apply(case.plan, case.context).fingerprint != case.plan.fingerprint
        for case in cases(rule.name)
    ]
    assert True in changes
    assert False in changes


def test_every_rule_is_a_function_in_the_file_of_its_name() -> None:
    for rule in RULES:
        file = Path(inspect.getsourcefile(rule.apply) or "")
        assert file.name == f"{rule.name}.py"
        assert rule.summary.endswith(".")
        assert rule.name.startswith("unsafe_") != rule.default
    files = {path.stem for path in Path(planner.rules.__file__).parent.glob("*.py")}
    assert files - {"__init__"} == {rule.name for rule in RULES}


def test_every_fixture_is_of_a_rule() -> None:
    assert {path.stem for path in RULE_FIXTURES.glob("*.txt")} == {rule.name for rule in RULES}


def test_the_documentation_lists_the_rules() -> None:
    page = (Path(__file__).parents[2] / "docs" / "planner.md").read_text("utf-8")
    table = page.partition("<!-- rules -->\n")[2].partition("<!-- /rules -->")[0]
    assert table == "".join(f"| `{rule.name}` | {rule.summary} |\n" for rule in RULES)
