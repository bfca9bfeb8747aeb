"""Techniques: the closed forms that they are published with, neutral settings, and refusals."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from costmodel.attention import DENSE, AttentionProfile, Use, native
from costmodel.errors import ProfileError
from costmodel.hardware import load_hardware
from costmodel.layers import capped_pairs, model_layers
from costmodel.models import LinearAttention, load_model
from costmodel.step import PrefillChunk, StepLoad, StepModel
from costmodel.techniques.architectures import hybrid_linear, sliding_window
from costmodel.techniques.compressed_attention import (
    ccgqa,
    ccgqa_block,
    gqa_block,
    mha_block,
    mla_block,
    mla_decode_flops,
)
from costmodel.techniques.fastkv import fastkv
from costmodel.techniques.recurrent import kv_loads, recurrent_transformer
from costmodel.techniques.segment_pruning import (
    PruningSchedule,
    adaptinfer_schedule,
    segment_pruning,
)
from costmodel.techniques.sparse_prefill import sparse_prefill
from costmodel.techniques.swiftkv import swiftkv

LLAMA = load_model("llama-3.1-8b")
H200 = load_hardware("h200")
PRUNING = segment_pruning(95, adaptinfer_schedule("llava-1.5-7b", 64))

ALL: tuple[AttentionProfile, ...] = (
    DENSE, swiftkv(), fastkv(), PRUNING, ccgqa(), sparse_prefill(2357, 6055),
    recurrent_transformer(), sliding_window(4096, 4),
    hybrid_linear(LinearAttention(16, 32, 128, 128)),
)  # fmt: skip


@pytest.mark.parametrize("technique", ALL, ids=lambda t: t.name)
def test_every_technique_prices_a_model(technique: AttentionProfile) -> None:
    step = StepModel(LLAMA, H200, technique)
    cost = step.cost(StepLoad((PrefillChunk(2048),), (3000,) * 4))
    assert cost.time_s > 0
    assert len(step.layers) == LLAMA.n_layers
    assert technique.source
    assert 0 < step.kv_bytes(4096) <= StepModel(LLAMA, H200).kv_bytes(4096) * 1.01


@pytest.mark.parametrize(
    "neutral",
    [
        swiftkv(keep_layers=32),
        fastkv(tsp_rate=1.0, retain=1.0),
        segment_pruning(100, PruningSchedule(500, (1, 10), (500, 500))),
        sparse_prefill(10**9, 0, threshold_tokens=0),
    ],
    ids=lambda t: t.name,
)
def test_neutral_settings_change_no_work(neutral: AttentionProfile) -> None:
    load = StepLoad((PrefillChunk(2048, 512),), (3000,) * 4)
    plain, same = (StepModel(LLAMA, H200, t).cost(load) for t in (DENSE, neutral))
    assert same.linear_s == pytest.approx(plain.linear_s)
    assert same.kv_read_bytes == pytest.approx(plain.kv_read_bytes)
    assert same.decode_attention_s == pytest.approx(plain.decode_attention_s)


# --- closed forms --------------------------------------------------------------------------------


def prefill_flops(technique: AttentionProfile, tokens: int) -> tuple[float, float]:
    """(linear, attention) FLOP of a prompt in all layers."""
    layers = technique.layers(LLAMA)
    linear = sum(
        2 * tokens * (x.params_kv * x.kv_tokens_share + x.params_rest * x.rest_tokens_share)
        for x in layers
    )
    return linear, sum(x.attention_flops_per_pair * x.pairs(tokens, 0) for x in layers)


@given(keep=st.integers(1, 32), group=st.sampled_from([1, 2, 4, 8]))
def test_swiftkv_keeps_its_share_of_kv(keep: int, group: int) -> None:
    share = keep / 32
    step = StepModel(LLAMA, H200, swiftkv(keep, group))
    expected = LLAMA.kv_bytes_per_token * (share + (1 - share) / group)
    assert step.kv_bytes(1000) == pytest.approx(1000 * expected)
    # Decoding still reads every layer's KV: sharing saves memory, not traffic.
    read = step.cost(StepLoad((), (1000,))).kv_read_bytes
    assert read == pytest.approx(1000 * LLAMA.kv_bytes_per_token)


@given(
    tsp=st.integers(0, 31), rate=st.floats(0.05, 1), retain=st.floats(0.01, 1),
    tokens=st.integers(1000, 50_000),
)  # fmt: skip
def test_fastkv_follows_its_equations(tsp: int, rate: float, retain: float, tokens: int) -> None:
    n1 = (tsp + 1) / 32
    linear, attention = prefill_flops(fastkv(tsp, rate, retain), tokens)
    plain, dense = prefill_flops(DENSE, tokens)
    assert linear / plain == pytest.approx(n1 + (1 - n1) * rate)
    assert attention / dense == pytest.approx(n1 + (1 - n1) * rate**2, abs=0.002)
    kept = StepModel(LLAMA, H200, fastkv(tsp, rate, retain)).kv_bytes(tokens)
    assert kept == pytest.approx(retain * tokens * LLAMA.kv_bytes_per_token)


def test_pruned_segments_keep_what_the_schedule_says() -> None:
    schedule = adaptinfer_schedule("llava-1.5-7b", 64)
    model = load_model("llava-1.5-7b")
    kept = StepModel(model, H200, PRUNING).kv_bytes(95 + 576)
    expected = sum(95 + schedule.at(layer) for layer in range(32)) / 32
    assert kept == pytest.approx(expected * model.kv_bytes_per_token)


@given(queries=st.integers(0, 60), before=st.integers(0, 60), limit=st.integers(1, 60))
def test_capped_pairs_count_one_by_one(queries: int, before: int, limit: int) -> None:
    counted = sum(min(before + i, limit) for i in range(1, queries + 1))
    assert capped_pairs(queries, before, limit) == counted


def test_sparse_attention_starts_above_its_threshold() -> None:
    model = load_model("qwen2.5-14b-1m")
    sparse = sparse_prefill().layers(model)[0]
    dense = model_layers(model)[0]
    assert sparse.pairs(30_000, 0) == dense.pairs(30_000, 0)
    assert sparse.pairs(40_000, 0) < 0.6 * dense.pairs(40_000, 0)
    assert sparse.select_flops(40_000, 0) > 0 == sparse.select_flops(30_000, 0)


@pytest.mark.parametrize("width", [1024, 2048])
@pytest.mark.parametrize("tokens", [512, 16_384])
def test_the_five_rows_of_the_attention_table(width: int, tokens: int) -> None:
    e, s, group, c, c1, c2 = width, tokens, 8, 4, 2, 8
    rows = (
        (mha_block(e), 4 * e * e, 2 * e, 8 * s * e * e + 4 * e * s * s, 8 * e * e + 4 * e * s),
        (
            gqa_block(e, group), 2 * e * e + 2 * e * e / group, 2 * e / group,
            (1 + 1 / group) * 4 * s * e * e + 4 * e * s * s,
            (1 + 1 / group) * 4 * e * e + 4 * e * s,
        ),
        (
            ccgqa_block(e, c, c), 4 * e * e / c, 2 * e / c,
            2 / c * 4 * s * e * e + 4 * e * s * s / c, 2 / c * 4 * e * e + 4 * e * s / c,
        ),
        (
            ccgqa_block(e, c1, c2), 2 * e * e / c1 + 2 * e * e / c2, 2 * e / c2,
            (1 / c1 + 1 / c2) * 4 * s * e * e + 4 * e * s * s / c1,
            (1 / c1 + 1 / c2) * 4 * e * e + 4 * e * s / c1,
        ),
    )  # fmt: skip
    for block, params, kv, prefill, decode in rows:
        assert block.params == pytest.approx(params)
        assert block.kv_elements == pytest.approx(kv)
        assert block.prefill_flops(s) == pytest.approx(prefill)
        assert block.decode_flops(s) == pytest.approx(decode)
    c_kv, c_q, heads = 8, 4, 16
    mla = mla_block(e, c_kv, c_q)
    assert mla.params == pytest.approx(e * e + 3 * e * e / c_kv + 2 * e * e / c_q)
    assert mla.prefill_flops(s) == pytest.approx(
        2 * s * e * e + 4 * s * e * e / c_q + 6 * s * e * e / c_kv + 4 * e * s * s
    )
    assert mla_decode_flops(e, c_kv, c_q, heads, s) == pytest.approx(
        (2 * e * e + 2 * heads * e * e) / c_kv
        + 2 * heads * e * e / (c_q * c_kv)
        + 2 * e * e / c_q
        + 4 * e * s * heads / c_kv
    )


def test_compressed_layers_match_their_table_row() -> None:
    model = replace(LLAMA, n_kv_heads=32, name="mha")
    layer, dense = ccgqa(2, 8).layers(model)[0], model_layers(model)[0]
    block = ccgqa_block(4096, 2, 8)
    own = model.attention_params_kv + model.attention_params_q_and_o
    assert dense.params_kv + dense.params_rest - (
        layer.params_kv + layer.params_rest
    ) == pytest.approx(own - block.params)
    assert layer.attention_flops_per_pair == block.pair_flops
    assert layer.kv_bytes_per_token == 2 * block.kv_elements


def test_compressed_kv_moves_the_batch_limit() -> None:
    # Where KV capacity limits the batch, CCGQA serves more sequences than GQA, and GQA than MHA.
    mha = replace(LLAMA, n_kv_heads=32, name="mha")
    limits = [
        StepModel(model, H200, technique).max_sequences(16_384)
        for model, technique in ((mha, DENSE), (LLAMA, DENSE), (mha, ccgqa(2, 8)))
    ]
    assert limits[0] < limits[1] < limits[2]


def test_a_sequential_prefill_costs_a_decode_a_token() -> None:
    step = StepModel(LLAMA, H200, recurrent_transformer())
    one = step.cost(StepLoad((), (1,))).linear_s
    alone = step.cost(StepLoad((PrefillChunk(256),))).linear_s
    together = step.cost(StepLoad((PrefillChunk(256),) * 8)).linear_s
    assert alone == pytest.approx(256 * one)
    assert together < 1.1 * alone
    assert kv_loads(1024, tiled=False) / kv_loads(1024, tiled=True) > 100


# --- what a planner asks -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("technique", "model", "use", "reason"),
    [
        (swiftkv(), "llama-3.1-8b", Use(allow_approximate=True), "distilled checkpoint"),
        (swiftkv(), "llama-3.1-8b", Use(checkpoints=frozenset({"swiftkv"})), "approximation"),
        (
            swiftkv(), "gpt-oss-20b",
            Use(allow_approximate=True, checkpoints=frozenset({"swiftkv"})), "full attention",
        ),
        (fastkv(), "llama-3.1-8b", Use(), "does not allow approximation"),
        (
            fastkv(), "llama-3.1-8b", Use(allow_approximate=True, shares_prefix=True),
            "reuse this prefix",
        ),
        (
            fastkv(), "llama-3.1-8b", Use(prompt_tokens=40, allow_approximate=True),
            "fewer than its window",
        ),
        (PRUNING, "llava-1.5-7b", Use(allow_approximate=True), "marked as prunable"),
        (ccgqa(), "llama-3.1-8b", Use(), "pretrained architecture"),
        (
            sparse_prefill(), "qwen2.5-14b-1m", Use(prompt_tokens=9000, allow_approximate=True),
            "above 32768",
        ),
        (
            sparse_prefill(), "qwen2.5-14b",
            Use(prompt_tokens=90_000, allow_approximate=True), "no sparse budget",
        ),
        (
            recurrent_transformer(), "llama-3.1-8b",
            Use(prompt_tokens=4096, checkpoints=frozenset({"recurrent-transformer"})),
            "one position at a time",
        ),
        (sliding_window(1024), "llama-3.1-8b", Use(), "pretrained architecture"),
    ],
)  # fmt: skip
def test_refusals_say_why(technique: AttentionProfile, model: str, use: Use, reason: str) -> None:
    assert reason in (technique.refusal(load_model(model), use) or "")
    with pytest.raises(ProfileError, match="is refused"):
        technique.check(load_model(model), use)


@pytest.mark.parametrize(
    ("technique", "model", "use"),
    [
        (DENSE, "llama-3.1-8b", Use(shares_prefix=True)),
        (fastkv(), "llama-3.1-8b", Use(prompt_tokens=30_000, allow_approximate=True)),
        (
            sparse_prefill(), "qwen2.5-14b-1m",
            Use(prompt_tokens=200_000, allow_approximate=True),
        ),
        (
            swiftkv(), "llama-3.1-8b",
            Use(allow_approximate=True, checkpoints=frozenset({"swiftkv"}), shares_prefix=True),
        ),
        (
            recurrent_transformer(), "llama-3.1-8b",
            Use(prompt_tokens=64, batch=64, checkpoints=frozenset({"recurrent-transformer"})),
        ),
    ],
)  # fmt: skip
def test_what_fits_is_not_refused(technique: AttentionProfile, model: str, use: Use) -> None:
    assert technique.refusal(load_model(model), use) is None
    technique.check(load_model(model), use)


def test_prefix_reuse_by_class() -> None:
    assert DENSE.reusable_tokens(500, 800, 500) == 499
    assert sparse_prefill().reusable_tokens(70_000, 90_000, 90_000) == 65_536
    hybrid = native(load_model("qwen3-next-80b-a3b"))
    assert hybrid.reusable_tokens(500, 500, 900) == 500
    assert hybrid.reusable_tokens(400, 500, 900) == 0
    assert fastkv().reusable_tokens(899, 900, 900) == 0
    assert fastkv().reusable_tokens(900, 900, 900) == 899
    assert native(LLAMA) is DENSE


@pytest.mark.parametrize(
    "make",
    [
        lambda: swiftkv(group=0),
        lambda: swiftkv(keep_layers=40).layers(LLAMA),
        lambda: fastkv(tsp_rate=0),
        lambda: fastkv(tsp_layer=32).layers(LLAMA),
        lambda: ccgqa(8, 2),
        lambda: sparse_prefill().layers(LLAMA),
        lambda: sliding_window(0),
        lambda: segment_pruning(-1, adaptinfer_schedule("llava-1.5-7b", 64)),
        lambda: PruningSchedule(10, (1, 2), (5, 8)),
        lambda: PruningSchedule(10, (2, 1), (5, 3)),
        lambda: adaptinfer_schedule("llava-1.5-7b", 77),
    ],
)
def test_impossible_settings_are_refused(make: object) -> None:
    assert callable(make)
    with pytest.raises(ProfileError):
        make()
