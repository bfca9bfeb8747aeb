"""The step formula: its compact form, its limits, its parts, and what it refuses."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from costmodel.attention import DENSE, AttentionProfile
from costmodel.cost import Cost, total
from costmodel.errors import ProfileError
from costmodel.hardware import HardwareProfile, load_hardware
from costmodel.links import load_link
from costmodel.models import ModelProfile, load_model
from costmodel.step import PrefillChunk, StepLoad, StepModel, step_cost
from costmodel.step_timer import ModelTimer
from costmodel.techniques.fastkv import fastkv
from costmodel.techniques.segment_pruning import adaptinfer_schedule, segment_pruning
from costmodel.techniques.sparse_prefill import sparse_prefill
from costmodel.techniques.swiftkv import swiftkv

MODELS = [
    load_model(name)
    for name in (
        "llama-3.1-8b", "gpt-oss-20b", "deepseek-v3", "qwen3-next-80b-a3b", "smollm2-135m",
        "qwen2.5-14b-1m",
    )
]  # fmt: skip
HARDWARE = [load_hardware(name) for name in ("h200", "a6000", "laptop-cpu", "edgecim")]
TECHNIQUES: list[AttentionProfile | None] = [
    None, swiftkv(), swiftkv(group=2), fastkv(), sparse_prefill(2357, 6055),
    segment_pruning(95, adaptinfer_schedule("llava-1.5-7b", 64)),
]  # fmt: skip

chunks = st.lists(st.tuples(st.integers(1, 9000), st.integers(0, 60_000)), max_size=4)
decodes = st.tuples(st.integers(0, 300), st.integers(0, 20_000))


@settings(max_examples=150)
@given(
    model=st.sampled_from(MODELS),
    hardware=st.sampled_from(HARDWARE),
    technique=st.sampled_from(TECHNIQUES),
    prefills=chunks,
    decode=decodes,
)
def test_the_compact_form_equals_the_full_one(
    model: ModelProfile,
    hardware: HardwareProfile,
    technique: AttentionProfile | None,
    prefills: list[tuple[int, int]],
    decode: tuple[int, int],
) -> None:
    step = StepModel(model, hardware, technique)
    n, context = decode
    load = StepLoad(tuple(PrefillChunk(*chunk) for chunk in prefills), (context,) * n)
    if not prefills and not n:
        assert step.cost(load).time_s == 0
        return
    expected = step.cost(load)
    for _ in range(2):  # the second answer comes from what the first has kept
        assert step.step_s(prefills, n, n * context) == pytest.approx(expected.time_s, rel=1e-9)
    parts = (
        expected.linear_s, expected.prefill_attention_s, expected.decode_attention_s,
        expected.head_s, expected.select_s, expected.link_s, expected.overhead_s,
    )  # fmt: skip
    assert sum(parts) == pytest.approx(expected.time_s, rel=1e-9)
    assert min(parts) >= 0


@given(model=st.sampled_from(MODELS), prefills=chunks, decode=decodes, more=st.integers(1, 500))
def test_more_work_never_costs_less(
    model: ModelProfile, prefills: list[tuple[int, int]], decode: tuple[int, int], more: int
) -> None:
    step = StepModel(model, HARDWARE[0])
    n, context = decode
    now = step.step_s(prefills, n, n * context)
    assert step.step_s([*prefills, (more, 0)], n, n * context) >= now
    assert step.step_s(prefills, n + 1, (n + 1) * context) >= now
    if prefills:
        (tokens, before), *rest = prefills
        assert step.step_s([(tokens, before + more), *rest], n, n * context) >= now


def test_hits_save_what_they_hold() -> None:
    step = StepModel(MODELS[0], HARDWARE[0])
    whole = step.step_s(((8192, 0),), 0, 0)
    behind_hit = step.step_s(((1024, 7168),), 0, 0)
    assert 0.1 * whole < behind_hit < 0.25 * whole


def test_a_decode_step_reads_all_weights_once_and_its_kv() -> None:
    model, hardware = MODELS[0], HARDWARE[0]
    cost = step_cost(StepLoad((), (1000, 3000)), model, None, hardware)
    embeddings = model.embedding_params * model.weight_bytes_per_param
    assert cost.weight_bytes == pytest.approx(model.weight_bytes - embeddings)
    assert cost.kv_read_bytes == 4000 * model.kv_bytes_per_token
    assert cost.kv_write_bytes == 2 * model.kv_bytes_per_token
    assert cost.kv_bytes == 4000 * model.kv_bytes_per_token


def test_moe_reads_the_experts_it_touches() -> None:
    model = load_model("qwen3-30b-a3b")
    step = StepModel(model, HARDWARE[0])
    assert model.experts is not None
    bank = model.n_layers * model.experts.n_experts * model.expert_params * 2
    one = step.cost(StepLoad((), (100,))).expert_bytes
    many = step.cost(StepLoad((), (100,) * 64)).expert_bytes
    assert one == pytest.approx(bank * 8 / 128)
    assert one < many < bank
    uniform = replace(model, experts=replace(model.experts, coverage_alpha=1.0))
    assert StepModel(uniform, HARDWARE[0]).cost(StepLoad((), (100,) * 64)).expert_bytes > many


def test_windows_stop_reading_and_keeping() -> None:
    model = load_model("gpt-oss-20b")
    step = StepModel(model, HARDWARE[0])
    short, long = step.kv_bytes(128), step.kv_bytes(100_128)
    assert long - short == 100_000 * model.kv_bytes_per_token_beyond_window


def test_recurrent_layers_have_a_state_of_constant_size() -> None:
    model = load_model("qwen3-next-80b-a3b")
    step = StepModel(model, HARDWARE[0])
    assert step.kv_bytes(0) == pytest.approx(model.state_bytes_per_sequence)
    per_token = step.kv_bytes(1001) - step.kv_bytes(1000)
    assert per_token == model.kv_bytes_per_token


def test_layer_groups_cost_what_their_layers_cost() -> None:
    step = StepModel(MODELS[0], HARDWARE[0])
    contexts = (500,) * 8
    groups = [
        step.cost(StepLoad((PrefillChunk(4096, samples=False),), contexts, (i, i + 8)))
        for i in range(0, 32, 8)
    ]
    whole = step.cost(StepLoad((PrefillChunk(4096),)))
    decode = step.cost(StepLoad((), contexts))
    # Each group runs a quarter of the prompt's layers; the decodes run in all layers every time.
    assert sum(c.prefill_attention_s for c in groups) == pytest.approx(whole.prefill_attention_s)
    expected = whole.linear_s + 4 * decode.linear_s
    assert sum(c.linear_s for c in groups) == pytest.approx(expected, rel=0.3)
    assert sum(c.decode_attention_s for c in groups) == pytest.approx(4 * decode.decode_attention_s)
    with pytest.raises(ProfileError, match="layers go from 0 to 32"):
        step.cost(StepLoad((PrefillChunk(1),), (), (0, 33)))


def test_compute_in_memory_gains_nothing_from_a_batch() -> None:
    step = StepModel(replace(MODELS[4], weight_bytes_per_param=0.5), load_hardware("edgecim"))
    one, four = step.step_s((), 1, 0), step.step_s((), 4, 0)
    assert four == pytest.approx(4 * one)
    assert step.step_s(((64, 0),), 0, 0) > 50 * one


def test_more_devices_and_their_link() -> None:
    model, hardware = load_model("llama-3.1-70b"), load_hardware("h100")
    assert StepModel(model, hardware).max_sequences(4096) == 0
    four = StepModel(model, hardware, devices=4, link=load_link("nvlink4"))
    assert four.max_sequences(4096) > 50
    alone = StepModel(model, hardware).step_s(((4096, 0),), 0, 0)
    cost = four.cost(StepLoad((PrefillChunk(4096),)))
    assert alone / 4 < cost.time_s < alone / 2
    assert cost.link_s > 0
    assert four.step_s(((4096, 0),), 0, 0) == pytest.approx(cost.time_s)


def test_energy_and_money() -> None:
    hardware = replace(load_hardware("h200"), price_usd_per_h=3.6, step_overhead_s=0.5)
    cost = StepModel(MODELS[0], hardware).cost(StepLoad((), (10,)))
    assert cost.usd == pytest.approx(1e-3 * cost.time_s)
    working = cost.time_s - cost.overhead_s
    expected = working * hardware.power_w + cost.overhead_s * hardware.idle_power_w
    assert cost.energy_j == pytest.approx(expected)
    counted = replace(hardware, joule_per_flop=1e-12, joule_per_byte=1e-11)
    assert StepModel(MODELS[0], counted).cost(StepLoad((), (10,))).energy_j > 0
    assert StepModel(MODELS[0], load_hardware("h200")).cost(StepLoad((), (10,))).usd is None


def test_costs_add_up_and_keep_the_weakest_evidence() -> None:
    a = Cost(time_s=1, kv_bytes=5, usd=2.0, evidence="printed")
    b = Cost(time_s=2, kv_bytes=3, usd=None, evidence="fitted")
    both = total([a, b])
    assert (both.time_s, both.kv_bytes, both.usd, both.evidence) == (3, 5, None, "fitted")
    assert total([]).time_s == 0
    assert StepModel(MODELS[0], load_hardware("h200")).evidence == "assumed"
    assert StepModel(MODELS[0], load_hardware("a6000"), DENSE).evidence == "fitted"


@pytest.mark.parametrize(
    "load",
    [
        lambda: StepLoad((PrefillChunk(-1),)),
        lambda: StepLoad((PrefillChunk(1, -1),)),
        lambda: StepLoad((), (-5,)),
    ],
)
def test_negative_tokens_are_refused(load: object) -> None:
    assert callable(load)
    with pytest.raises(ProfileError, match="negative"):
        load()


def test_a_timer_for_simulators_sums_chunks() -> None:
    step = StepModel(MODELS[0], HARDWARE[0])
    timer = ModelTimer(step)
    assert timer.step_s(0, 0, 0, 0) == 0
    assert timer.step_s(512, 100, 8, 8000) == step.step_s(((512, 100),), 8, 8000)
    low, high = timer.step_s(0, 0, 8, 8000), timer.step_s(0, 0, 9, 8000)
    assert timer.step_s(0, 0, 8.5, 8000) == pytest.approx((low + high) / 2)
