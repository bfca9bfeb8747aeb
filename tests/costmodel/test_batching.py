"""Batches cut into steps: nothing is lost or done twice, and the schedules rank as published."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from costmodel.attention import Use
from costmodel.batching import (
    Batching,
    Call,
    balanced_chunk,
    batch_s,
    batch_steps,
    best_chunk,
    chunked_steps,
    layer_groups,
    layered_expert_traffic,
    layered_prefill_refusal,
    layered_steps,
    mix_s,
    packed_chunks,
    separate_s,
)
from costmodel.cost import total
from costmodel.errors import ProfileError
from costmodel.hardware import load_hardware
from costmodel.models import load_model
from costmodel.step import StepModel

calls = st.lists(
    st.builds(
        lambda new, cached, out: Call(new + cached, out, cached),
        st.integers(1, 400),
        st.integers(0, 300),
        st.integers(0, 20),
    ),
    min_size=1,
    max_size=12,
)
rules = st.builds(
    Batching, st.integers(30, 500), st.integers(1, 16), st.booleans(), st.integers(1, 4)
)


@given(calls=calls, batching=rules)
def test_every_token_is_computed_once(calls: list[Call], batching: Batching) -> None:
    steps = list(batch_steps(calls, batching))
    assert sum(t for s in steps for t, _ in s.prefills) == sum(
        c.prompt_tokens - c.cached_tokens for c in calls
    )
    assert sum(s.n_decodes for s in steps) == sum(max(0, c.output_tokens - 1) for c in calls)
    # A decode's context: its prompt and the answer so far, its own new token included.
    assert sum(s.decode_context_tokens for s in steps) == sum(
        c.prompt_tokens + i for c in calls for i in range(1, c.output_tokens)
    )
    for step in steps:
        assert step.n_decodes <= batching.max_sequences
        assert len(step.prefills) <= batching.max_chunks
        if not batching.fuse_decodes:
            assert not (step.prefills and step.n_decodes)
            assert sum(t for t, _ in step.prefills) <= batching.chunk_tokens


@given(calls=calls, batching=rules)
def test_the_compact_steps_price_like_the_full_ones(calls: list[Call], batching: Batching) -> None:
    model = StepModel(load_model("smollm2-135m"), load_hardware("laptop-cpu"))
    for step in batch_steps(calls, batching):
        if step.decode_context_tokens % max(step.n_decodes, 1) == 0:
            compact = model.step_s(step.prefills, step.n_decodes, step.decode_context_tokens)
            assert compact == pytest.approx(model.cost(step.load()).time_s)


def test_hits_and_sharing_a_step_save_time() -> None:
    model = StepModel(load_model("llama-3.1-8b"), load_hardware("h200"))
    cold = [Call(4224, 32)] * 64
    warm = [Call(4224, 32, 4096)] * 64
    assert batch_s(model, cold, Batching()) > 4 * batch_s(model, warm, Batching())
    one = batch_s(model, cold[:1], Batching())
    assert batch_s(model, cold, Batching()) < 50 * one


@pytest.mark.parametrize(
    "call", [(10, -1, 0), (10, 1, 11), (10, 1, -1)], ids=["output", "cached", "negative"]
)
def test_impossible_calls_are_refused(call: tuple[int, int, int]) -> None:
    with pytest.raises(ProfileError, match="impossible"):
        Call(*call)


def test_impossible_rules_are_refused() -> None:
    with pytest.raises(ProfileError, match="chunk_tokens"):
        Batching(chunk_tokens=0)


# --- packing -------------------------------------------------------------------------------------


@given(st.lists(st.integers(1, 512), min_size=1, max_size=40))
def test_packing_pads_less_than_padding(lengths: list[int]) -> None:
    tokens = {
        packing: sum(c.tokens for c in packed_chunks(lengths, packing))
        for packing in ("padded", "packed_rows", "varlen")
    }
    assert tokens["varlen"] == sum(lengths)
    assert tokens["padded"] == len(lengths) * max(lengths)
    assert tokens["varlen"] <= tokens["packed_rows"] <= tokens["padded"]
    rows = tokens["packed_rows"] // max(lengths)
    assert rows >= -(-sum(lengths) // max(lengths))


def test_negative_lengths_are_refused() -> None:
    with pytest.raises(ProfileError, match="negative"):
        packed_chunks([3, -1], "varlen")


# --- chunks (SARATHI) ----------------------------------------------------------------------------


def test_the_best_chunk_follows_the_mix() -> None:
    model = StepModel(load_model("llama-13b-sarathi"), load_hardware("a6000"))
    few, many = (best_chunk(model, 1024 - out, out, 18, most=1024) for out in (30, 70))
    # More answer tokens a prompt want smaller chunks, so that every decode finds a ride.
    assert few > many
    assert balanced_chunk(14, 18) == 238
    whole = separate_s(model, 954, 70, 18)
    assert mix_s(model, 954, 70, many, 18) < whole


def test_a_prompt_in_chunks_reads_its_kv_again() -> None:
    model = StepModel(load_model("llama-3.1-8b"), load_hardware("h200"))
    chunked = total([model.cost(load) for load in chunked_steps(8192, 1024, ())])
    whole = total([model.cost(load) for load in chunked_steps(8192, 8192, ())])
    per_token = model.model.kv_bytes_per_token
    # m_kv P (P/C - 1) / 2 more than once (SARATHI, chunking overhead).
    expected = per_token * 8192 * (8192 / 1024 - 1) / 2
    assert chunked.kv_read_bytes - whole.kv_read_bytes == pytest.approx(expected)
    assert chunked.kv_write_bytes == whole.kv_write_bytes


# --- layer groups --------------------------------------------------------------------------------


def test_layer_groups_follow_the_prompt() -> None:
    assert [layer_groups(n) for n in (1, 512, 513, 4096)] == [1, 1, 2, 8]
    assert layer_groups(9194, most=16) == 16


def test_layered_prefill_loses_on_dense_models_and_saves_experts() -> None:
    hardware, contexts = load_hardware("h100"), (2000,) * 32
    dense = StepModel(load_model("qwen3-8b"), hardware)
    layered = total([dense.cost(x) for x in layered_steps(4096, 36, 8, contexts)])
    chunked = total([dense.cost(x) for x in chunked_steps(4096, 512, contexts)])
    assert layered.time_s > chunked.time_s
    moe = StepModel(load_model("qwen3-30b-a3b"), hardware)
    layered = total([moe.cost(x) for x in layered_steps(9194, 48, 18, contexts)])
    chunked = total([moe.cost(x) for x in chunked_steps(9194, 512, contexts)])
    assert layered.expert_bytes < 0.75 * chunked.expert_bytes
    experts = moe.model.experts
    assert experts is not None
    predicted = layered_expert_traffic(experts.expert_coverage(32), 18)
    assert layered.expert_bytes / chunked.expert_bytes == pytest.approx(predicted, abs=0.05)


def test_each_layer_runs_the_prompt_once() -> None:
    loads = list(layered_steps(100, 7, 3, (5,)))
    assert [load.prefill_layers for load in loads] == [(0, 3), (3, 5), (5, 7)]
    assert [load.prefills[0].samples for load in loads] == [False, False, True]
    assert [load.decode_contexts for load in loads] == [(5,), (6,), (7,)]


def test_when_layered_prefill_is_refused() -> None:
    moe, dense = load_model("qwen3-30b-a3b"), load_model("qwen3-8b")
    long = Use(prompt_tokens=8000, tbt_limit_s=0.05)
    assert layered_prefill_refusal(moe, long) is None
    assert "dense" in (layered_prefill_refusal(dense, long) or "")
    offline = Use(prompt_tokens=8000)
    assert "limit" in (layered_prefill_refusal(moe, offline) or "")
    short = Use(prompt_tokens=200, tbt_limit_s=0.05)
    assert "one group" in (layered_prefill_refusal(moe, short) or "")
