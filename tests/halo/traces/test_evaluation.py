"""The evaluation of measured conversations, on measurements made up so that the answer is known."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from random import Random
from types import ModuleType
from typing import Any

import pytest

from costmodel.pte import Turn, price
from costmodel.pte_exact import ExactTerms
from costmodel.pte_profiles import Pricing
from halo.errors import InputError
from halo.pte_evaluation import evaluate, least_squares, render_evaluation


def script() -> ModuleType:
    path = Path(__file__).parents[3] / "workloads" / "gpu" / "pte_sglang.py"
    spec = importlib.util.spec_from_file_location("pte_sglang", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    import sys

    sys.modules["pte_sglang"] = module
    spec.loader.exec_module(module)
    return module


def measurements(path: Path) -> Path:
    """A server that needs exactly what exact PTE with one sequence a step says, one call after
    another."""
    rates = Pricing("exact", "h100-sxm", terms=ExactTerms(batch=1)).rates("llama-3.1-8b")
    random = Random(5)
    now = 0.0
    conversations: list[dict[str, Any]] = []
    for seed in range(30):
        calls: list[dict[str, Any]] = []
        context = 0
        for _ in range(random.randrange(1, 8)):
            cached, context = context, context + random.randrange(100, 2000)
            decoded = random.randrange(10, 300)
            (cost,) = price(rates, [Turn(context, decoded, cached)])
            seconds = cost.value * 20e-6
            meta = {
                "prompt_tokens": context, "completion_tokens": decoded, "cached_tokens": cached,
                "e2e_latency": seconds + 0.25, "queue_time": 0.25,
            }  # fmt: skip
            now += seconds + 0.25
            calls.append({"context_tokens": context, "sent_s": now, "done_s": now, "meta": meta})
            context += decoded
        conversations.append({"seed": seed, "calls": calls})
    level = {"concurrency": 1, "conversations": conversations}
    document = {
        "format": "halo-pte-raw-1", "device": "NVIDIA H100 80GB HBM3", "model_config": None,
        "pools": [{"pool": "roomy", "levels": [level]}],
    }  # fmt: skip
    path.write_text(json.dumps(document))
    return path


def test_a_server_that_follows_the_formula_correlates_fully(tmp_path: Path) -> None:
    found = evaluate(measurements(tmp_path / "raw.json"))
    assert found["hardware"] == "h100-sxm" and found["conversations"] == 30
    by_key = {
        (row["metric"], row["unit"], row["measured"]): row["pearson"]
        for row in found["correlations"]
        if row["group"] == "everything"
    }
    for unit in ("call", "trajectory"):
        for measured in ("model_time", "device_share"):
            assert by_key[("exact", unit, measured)] == pytest.approx(1.0)
            assert by_key[("output tokens", unit, measured)] < 0.9999
    (fit, *_) = found["fits"]
    assert fit["model_time"]["pearson"] > 0.9999
    assert fit["model_time"]["seconds_per"]["uncached_tokens"] == pytest.approx(20e-6, rel=0.3)
    text = render_evaluation(found)
    assert "| exact | 1.000 (1.000) |" in text


def test_calls_side_by_side_share_the_device(tmp_path: Path) -> None:
    def call(start: float, end: float) -> dict[str, Any]:
        meta = {"prompt_tokens": 10, "completion_tokens": 1, "e2e_latency": end - start}
        return {"context_tokens": 10, "sent_s": start, "done_s": end, "meta": meta}

    conversations = [{"seed": 0, "calls": [call(0, 4)]}, {"seed": 1, "calls": [call(2, 4)]}]
    level = {"concurrency": 2, "conversations": conversations}
    document = {
        "format": "halo-pte-raw-1", "device": "NVIDIA H200",
        "pools": [{"pool": "p", "levels": [level]}],
    }  # fmt: skip
    path = tmp_path / "raw.json"
    path.write_text(json.dumps(document))
    (described,) = evaluate(path)["levels"]
    assert described["mean_running"] == pytest.approx(1.5)
    assert described["device_time_s"] == pytest.approx(4.0)
    assert described["model_time_s"] == pytest.approx(6.0)


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    for content in ("{}", "[", '{"format": "other"}'):
        path.write_text(content)
        with pytest.raises(InputError, match=r"x\.json"):
            evaluate(path)


def test_least_squares_without_an_answer() -> None:
    assert least_squares([], []) is None
    assert least_squares([[1.0, 2.0], [2.0, 4.0]], [1.0, 2.0]) is None


def test_the_planned_conversations_are_enough_and_repeatable() -> None:
    measured = script()
    conversations = 0
    for concurrency, count, alive in measured.LEVELS:
        conversations += count
        assert concurrency < alive
        contexts: list[int] = []
        for number in range(count):
            steps = measured.plan_conversation(1000 * concurrency + number)
            assert steps == measured.plan_conversation(1000 * concurrency + number)
            assert 2 <= len(steps) <= 12 and all(step.pause_s > 0 for step in steps)
            contexts.append(sum(step.new_tokens + step.decode_tokens for step in steps))
        # those alive do not fit into the tight pool, so paused ones must be evicted
        assert sum(sorted(contexts)[:alive]) > measured.TIGHT_POOL_TOKENS
    assert 2 * conversations >= 200 and len(measured.LEVELS) == 3


def test_ids_of_an_answer_in_both_shapes() -> None:
    ids = script().output_ids
    assert ids({"output_ids": [9, 4, 5], "meta_info": {"completion_tokens": 2}}) == [4, 5]
    assert ids({"meta_info": {"output_token_logprobs": [[-0.1, 7, None]]}}) == [7]
    assert ids({"meta_info": {}}) is None
