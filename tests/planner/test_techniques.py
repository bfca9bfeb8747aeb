"""Which attention technique may serve a plan: what is refused, why, and what is chosen."""

from __future__ import annotations

from typing import Any

import pytest
from sample_plans import LOOKUP, ask, column, query, scan

import halo
from costmodel.errors import ProfileError
from costmodel.hardware import HardwareProfile, load_hardware
from costmodel.models import ModelProfile, load_model
from costmodel.techniques.named import TECHNIQUES, named_technique
from halo.errors import ConfigError, TechniqueRefusedError
from planner.context import PlanContext
from planner.logical import Agent, Choose, Json, LogicalPlan, Prompt, Ref
from planner.physical import PhysicalPlan, Worker, place
from planner.techniques import Wanted, choose_technique, served_by, with_techniques

TORCH = Worker(
    "torch:m", "torch", "m", 8, prefix_cache=True, techniques=("fastkv", "swiftkv"),
)  # fmt: skip
QUESTIONS = ["Summarise this document. ", "Who wrote this document, and why? "]


def shape(worker: Worker) -> tuple[ModelProfile, HardwareProfile]:
    return load_model("llama-3.1-8b"), load_hardware("h200")


def documents(n: int = 8, words: int = 4_000) -> list[dict[str, Json]]:
    return [{"doc": f"document {i} " * words} for i in range(n)]


def one_shot() -> LogicalPlan:
    """Each long document is read once."""
    rows = scan("doc")
    return query("q", ask("Summarise: ", column(rows, "doc"), max_tokens=64, label="note"), rows)


def fan_out() -> LogicalPlan:
    """Several questions about each document, behind it."""
    rows = scan("doc")
    doc = column(rows, "doc")
    first = ask("Document: ", doc, "\n", QUESTIONS[0], label="first")
    second = ask("Document: ", doc, "\n", QUESTIONS[1], first, label="second")
    return query("q", second, rows)


def chosen(plan: LogicalPlan) -> LogicalPlan:
    rows = scan("doc")
    asked = Choose((column(rows, "doc"),), "m", Prompt((Ref(0),)), options=("a", "b"), label="kind")
    return query("q", asked, rows)


def agent() -> LogicalPlan:
    rows = scan("doc")
    asked = Agent((column(rows, "doc"),), "m", Prompt((Ref(0),)), tools=(LOOKUP,), label="look")
    return query("q", asked, rows)


def decided(plan: LogicalPlan, setting: str, worker: Worker = TORCH, **wanted: Any) -> PhysicalPlan:
    context = PlanContext(rows={"rows": documents()})
    stats = context.stats(plan, orders=True)
    physical = place(plan, stats, {"m": worker})
    return with_techniques(physical, stats, context, Wanted(setting, **wanted), shape)


@pytest.mark.parametrize(
    ("plan", "setting", "wanted", "words"),
    [
        (fan_out(), "fastkv", {}, "call 'second': FastKV keeps a cache .* tokens are cached"),
        (agent(), "fastkv", {}, "call 'look': FastKV .* turn by turn"),
        (chosen(one_shot()), "fastkv", {}, "call 'kind': the options of a choice are scored"),
        (one_shot(), "fastkv", {"allow_approximate": False}, "FastKV changes answers"),
        (one_shot(), "swiftkv", {}, "SwiftKV needs a distilled checkpoint; .* has none"),
        (one_shot(), "sparse-prefill", {}, "'torch' does not offer .* offers: fastkv, swiftkv"),
    ],
)
def test_a_technique_that_does_not_apply_is_refused_with_the_reason(
    plan: LogicalPlan, setting: str, wanted: dict[str, Any], words: str
) -> None:
    with pytest.raises(TechniqueRefusedError, match=words) as caught:
        decided(plan, setting, **wanted)
    assert (caught.value.setting, caught.value.worker) == (setting, "torch:m")
    assert f"attention={setting!r}" in str(caught.value)


def test_a_technique_that_applies_is_what_the_worker_gets() -> None:
    assert decided(one_shot(), "fastkv(retain=0.2)").workers[0].attention == "fastkv(retain=0.2)"
    made = {"checkpoints": frozenset(["swiftkv"])}
    assert decided(fan_out(), "swiftkv", **made).workers[0].attention == "swiftkv"


def test_without_a_prefix_cache_nothing_is_shared_that_a_technique_could_lose() -> None:
    alone = Worker("torch:m", "torch", "m", 8, techniques=("fastkv",))
    assert decided(fan_out(), "fastkv", alone).workers[0].attention == "fastkv"


def test_auto_takes_the_fastest_that_nothing_speaks_against() -> None:
    assert decided(one_shot(), "auto").workers[0].attention == "fastkv"
    made = {"checkpoints": frozenset(["swiftkv"])}
    assert decided(fan_out(), "auto").workers[0].attention == ""
    assert decided(fan_out(), "auto", **made).workers[0].attention == "swiftkv"
    assert decided(one_shot(), "auto", allow_approximate=False).workers[0].attention == ""
    none = Worker("sglang:m", "sglang=http://x", "m", 8, prefix_cache=True)
    assert decided(one_shot(), "auto", none).workers[0].attention == ""


def test_a_choice_says_why_not_the_others() -> None:
    context = PlanContext(rows={"rows": documents()})
    plan = one_shot()
    stats = context.stats(plan, orders=True)
    physical = place(plan, stats, {"m": TORCH})
    served = served_by(TORCH, physical, stats, context)
    assert [(each.op.label, each.calls, round(each.reused, 2)) for each in served] == [
        ("note", 8.0, 0.0)
    ]
    found = choose_technique(TORCH, served, Wanted("auto"), shape)
    assert found.technique is not None and found.technique.name == "fastkv"
    assert list(found.refused) == ["swiftkv"]


def test_settings_are_reached_from_a_session() -> None:
    @halo.workflow
    def note(doc: str) -> str:
        return halo.Model().gen(f"Summarise: {doc}")

    with (
        halo.Session(engine="simulated", attention="fastkv") as session,
        pytest.raises(TechniqueRefusedError, match="'simulated' does not offer FastKV"),
    ):
        session.prepare(note, documents(2, 10))
    with halo.Session(engine="simulated", attention="auto") as session:
        assert session.prepare(note, documents(2, 10)).plan.workers[0].attention == ""
    with pytest.raises(ConfigError, match=r"setting 'attention' .*no technique 'fastvk'"):
        halo.Session(engine="simulated", attention="fastvk")


def test_techniques_are_named_with_their_settings() -> None:
    for name in TECHNIQUES:
        assert named_technique(name).profile.name.startswith(name)
    assert named_technique("swiftkv(keep_layers=8, group=2)").settings == {
        "keep_layers": 8,
        "group": 2,
    }
    for text, words in [
        ("fastkv(rate=1)", "no setting 'rate'; it has: tsp_layer, tsp_rate, retain"),
        ("fastkv(retain=x)", "it is a number"),
        ("fastkv(retain=2)", "must be in"),
        ("FastKV!", "no technique"),
    ]:
        with pytest.raises(ProfileError, match=words):
            named_technique(text)
