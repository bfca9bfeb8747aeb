"""`halo estimate`: intervals that hold what happens, and no call unless asked for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import halo
from costmodel.errors import ProfileError
from costmodel.hardware import load_hardware
from costmodel.models import load_model
from costmodel.profile_writer import write_hardware
from costmodel.step import StepModel
from halo.cli.estimate import estimate as verb
from halo.errors import WorkflowError
from halo.estimate import Estimate, critical_calls, estimate_batch
from halo.flow import Flow
from halo.profiles import (
    EngineProfile,
    calibrated_path,
    calibrated_timers,
    engine_profile,
    model_shape,
)
from halo.session import Session
from planner.physical import Worker
from runtime.budget import Budget, Prices

PROFILE = EngineProfile(load_hardware("h200"), load_model("llama-3.1-8b"), calibrated=False)

LM = halo.Model()


@halo.workflow
def review(text: str) -> str:
    """Two calls one after the other."""
    draft = LM.gen(f"Summarise this review in one line: {text}", max_tokens=60)
    return LM.gen(f"Shorten: {draft}", max_tokens=30)


ROWS = [{"text": f"The {noun} was fine. " * 6} for noun in ("soup", "bread", "wine", "fish")] * 5


def estimated(
    flow: Flow = review, rows: list[dict[str, str]] = ROWS, prices: Prices = Prices()
) -> Estimate:
    with Session(engine="simulated") as session:
        prepared = session.prepare(flow, rows)
        profiles = {worker.name: PROFILE for worker in prepared.plan.workers}
        return estimate_batch(prepared.plan, prepared.stats, profiles, prices=prices)


def test_the_run_falls_inside_the_intervals() -> None:
    found = estimated()
    with Session(engine="simulated") as session:
        result = session.run(review, ROWS)
    calls = sum(m.made for m in result.metrics.values())
    tokens_in = sum(m.usage.input_tokens for m in result.metrics.values())
    tokens_out = sum(m.usage.output_tokens for m in result.metrics.values())
    assert found.calls.low <= calls <= found.calls.high
    assert found.output_tokens.low <= tokens_out <= found.output_tokens.high
    assert found.input_tokens.low <= tokens_in <= found.input_tokens.high * 1.2
    assert 0 < found.seconds.low < found.seconds.mid < found.seconds.high
    assert found.energy_j.mid > 0
    assert found.usd is None
    assert found.rows == 20


def test_an_estimate_makes_no_call_and_a_sample_makes_few(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "flow.py").write_text(
        "import halo\n\n"
        "lm = halo.Model()\n\n"
        "@halo.workflow\n"
        "def ask(text: str) -> str:\n"
        "    return lm.gen(f'Summarise: {text}', max_tokens=200)\n",
        "utf-8",
    )
    rows = tmp_path / "rows.jsonl"
    rows.write_text("\n".join(json.dumps({"text": f"row {i}"}) for i in range(40)), "utf-8")

    def run(sample: int, budget: str) -> dict[str, object]:
        code = verb(
            [f"{tmp_path / 'flow.py'}:ask"], str(rows), sample=sample, hardware="h200",
            shape="llama-3.1-8b", config_file=None,
            flags={"engine": "simulated", "budget": budget}, json_out=True,
        )  # fmt: skip
        assert code == 0
        document: dict[str, object] = json.loads(capsys.readouterr().out)
        return document

    before, after = run(0, "calls=40"), run(5, "calls=39")
    assert before["calls"] == {"low": 40, "expected": 40, "high": 40}
    assert before["budget"] == ["calls=40 is enough: 40 expected, 40 to 40"]
    assert after["budget"] == ["calls=39 will stop the run early: 40 expected, 40 to 40"]
    guessed, learned = before["output_tokens"], after["output_tokens"]
    assert isinstance(guessed, dict)
    assert isinstance(learned, dict)
    # The simulated engine answers far shorter than half of max_tokens.
    assert learned["expected"] < 0.8 * guessed["expected"]
    assert learned["high"] - learned["low"] < guessed["high"] - guessed["low"]


def test_a_sample_never_writes(tmp_path: Path) -> None:
    (tmp_path / "flow.py").write_text(
        "import halo\n\n"
        "@halo.tool\n"
        "def send(text: str) -> str:\n"
        "    raise RuntimeError('it ran')\n\n"
        "@halo.workflow\n"
        "def ask(text: str) -> str:\n"
        "    return send(text)\n",
        "utf-8",
    )
    (tmp_path / "rows.jsonl").write_text('{"text": "a"}', "utf-8")
    with pytest.raises(WorkflowError, match="writes"):
        verb(
            [f"{tmp_path / 'flow.py'}:ask"], str(tmp_path / "rows.jsonl"), sample=1, hardware="",
            shape="", config_file=None, flags={"engine": "simulated"}, json_out=True,
        )  # fmt: skip


def test_money_by_tokens_or_by_the_hour() -> None:
    by_token = estimated(prices=Prices(1.0, 10.0))
    assert by_token.usd is not None
    expected = 1e-6 * by_token.input_tokens.mid + 1e-5 * by_token.output_tokens.mid
    assert by_token.usd.mid == pytest.approx(expected)
    lines = by_token.against(Budget(tokens=1e9, usd=1e-9, prices=Prices(1.0, 10.0)))
    assert [line.split(":")[0] for line in lines] == [
        "tokens=1e+09 is enough",
        "usd=1e-09 will stop the run early",
    ]


def test_chains_of_calls() -> None:
    with Session(engine="simulated") as session:
        assert critical_calls(session.prepare(review, ROWS).plan.logical) == 2


def test_which_profile_an_engine_gets(tmp_path: Path) -> None:
    models = tmp_path / "models"
    own = calibrated_path("local", "smollm2-135m-instruct", models)
    default = engine_profile("local", "smollm2-135m-instruct", models_dir=models)
    assert (default.hardware.name, default.calibrated) == ("laptop-cpu", False)
    assert default.model.name == "smollm2-135m"
    write_hardware(load_hardware("laptop-cpu"), own, "a test")
    measured = engine_profile("local", "smollm2-135m-instruct", models_dir=models)
    assert (measured.hardware.name, measured.calibrated) == (own.stem, True)
    named = engine_profile("local", "smollm2-135m-instruct", hardware="h200", models_dir=models)
    assert (named.hardware.name, named.calibrated) == ("h200", False)
    with pytest.raises(ProfileError, match="halo calibrate --engine openai=http"):
        engine_profile("openai=http://x", "qwen3-8b", models_dir=models)


def test_schedules_are_priced_by_what_was_calibrated(tmp_path: Path) -> None:
    workers = [Worker(f"w{i}", "local", name) for i, name in enumerate(("qwen3-8b", "else"))]
    models = tmp_path / "models"
    assert calibrated_timers(workers, models) == {}
    for worker in workers:
        path = calibrated_path(worker.engine, worker.model, models)
        write_hardware(load_hardware("laptop-cpu"), path, "a test")
    timers = calibrated_timers(workers, models)
    assert list(timers) == ["w0"]
    step = StepModel(load_model("qwen3-8b"), load_hardware("laptop-cpu"))
    assert timers["w0"].step_s(64, 0, 0, 0) == pytest.approx(step.step_s(((64, 0),), 0, 0))


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("Qwen/Qwen2.5-7B-Instruct", "qwen2.5-7b"),
        ("qwen2.5-coder-1.5b-instruct", "qwen2.5-1.5b"),
        ("/models/llama-3.1-8b-instruct-q4_k_m", "llama-3.1-8b"),
        ("simulated", "smollm2-135m"),
    ],
)
def test_shapes_of_models_by_the_names_that_engines_use(name: str, shape: str) -> None:
    assert model_shape(name).name == shape


def test_an_unknown_shape_is_refused() -> None:
    with pytest.raises(ProfileError, match="no model profile"):
        model_shape("somebody/else-3b")
