"""PTE against every printed and derived number of the publication, and its own laws."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from costmodel.errors import ProfileError
from costmodel.models import load_model
from costmodel.pte import (
    LayerGroup,
    PteRates,
    Turn,
    carry_cost,
    ideal_turns,
    plain,
    price,
    reads,
    total,
)
from costmodel.pte_correlation import pearson, spearman
from costmodel.pte_exact import (
    DevicePeak,
    ExactTerms,
    Experts,
    Geometry,
    KvLayers,
    dense,
    exact_rates,
    true_gamma,
)
from costmodel.pte_paper import (
    PAPER_HARDWARE,
    PAPER_MODELS,
    REFERENCE_HOI,
    PaperHardware,
    PaperModel,
    formula_gamma,
    paper_hardware,
    paper_model,
    rates_of,
    rounded_gamma,
)
from costmodel.pte_profiles import Pricing, geometry_of

FORMULA = {
    "Qwen2.5-7B-Instruct": 0.003322,
    "Qwen2.5-32B-Instruct": 0.003199,
    "Qwen2.5-72B-Instruct": 0.001771,
    "Qwen3-32B": 0.001986,
    "Llama-3.1-8B-Instruct": 0.006197,
    "Llama-3.1-70B-Instruct": 0.001756,
    "Qwen3-30B-A3B": 0.005634,
    "GLM-4.5": 0.001856,
    "GPT-OSS-120B": 0.003845,
    "DeepSeek-V3.1-Terminus": 0.001437,
}
KV_BYTES_AND_TRUE_GAMMA = {
    "Qwen2.5-7B-Instruct": (57_344, 0.003322),
    "Qwen2.5-32B-Instruct": (262_144, 0.003199),
    "Qwen2.5-72B-Instruct": (327_680, 0.001771),
    "Qwen3-32B": (262_144, 0.003178),
    "Llama-3.1-8B-Instruct": (131_072, 0.006197),
    "Llama-3.1-70B-Instruct": (327_680, 0.001756),
    "Qwen3-30B-A3B": (98_304, 0.011268),
    "GLM-4.5": (376_832, 0.004454),
    "GPT-OSS-120B": (73_728, 0.005468),
    "DeepSeek-V3.1-Terminus": (70_272, 0.000718),
}
# Printed peak FLOP/s over printed bytes/s, or what the printed HOI needs instead (the errata).
HOI_FROM = {
    "H100-PCIe": (1513, 2.00),
    "H200": (1671, 4.80),
    "A100": (624, 1.935),
    "RTX-4090": (330, 1.008),
    "V100": (125, 0.90),
}


@pytest.mark.parametrize("row", PAPER_MODELS, ids=lambda row: row.name)
def test_the_rounding_rule_reproduces_the_printed_gamma(row: PaperModel) -> None:
    model = paper_model(row.name)
    assert model is not None
    args = (model.active_params, model.layers, model.width, model.kv_ratio)
    assert formula_gamma(*args) == pytest.approx(FORMULA[model.name], abs=6e-7)
    if model.name.startswith("DeepSeek"):  # the row that follows from no reading
        assert model.gamma == 0.00068
        assert rounded_gamma(*args) == pytest.approx(0.001, abs=1e-9)
        return
    assert rounded_gamma(*args) == pytest.approx(model.gamma, abs=6e-6)
    assert formula_gamma(*args) == pytest.approx(model.gamma, rel=0.016)


def test_the_erratum_of_qwen_32b() -> None:
    assert rounded_gamma(31.0e9, 64, 5120, 1 / 2) == pytest.approx(0.0080, abs=6e-6)
    assert rounded_gamma(31.0e9, 64, 5120, 1 / 5) == pytest.approx(0.00320, abs=6e-6)


@pytest.mark.parametrize("name", KV_BYTES_AND_TRUE_GAMMA)
def test_gamma_of_the_true_geometry(name: str) -> None:
    row = paper_model(name)
    assert row is not None
    kv_bytes, expected = KV_BYTES_AND_TRUE_GAMMA[name]
    geometry = Geometry(name, row.active_params, 0, (KvLayers(1, kv_bytes, 0),), None, "table")
    assert true_gamma(geometry, REFERENCE_HOI) == pytest.approx(expected, abs=6e-7)


@pytest.mark.parametrize("row", PAPER_HARDWARE, ids=lambda row: row.name)
def test_the_hardware_table(row: PaperHardware) -> None:
    device = paper_hardware(row.name)
    tflops, tb_s = HOI_FROM[device.name]
    assert device.hoi_flop_per_byte == pytest.approx(tflops / tb_s, abs=0.06)
    assert device.alpha == pytest.approx(device.hoi_flop_per_byte / REFERENCE_HOI, abs=0.005)


@pytest.mark.parametrize(
    ("order", "rho"),
    [
        ([1, 0, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12], 0.994505),
        ([1, 0, 3, 2, 4, 5, 6, 7, 8, 9, 10, 11, 12], 0.989011),
        ([2, 1, 0, 5, 4, 3, 6, 7, 8, 9, 10, 11, 12], 0.956044),
    ],
)
def test_the_printed_rank_correlations_are_those_of_13_models(order: list[int], rho: float) -> None:
    assert spearman(list(range(13)), order) == pytest.approx(rho, abs=5e-7)
    squares = sum((place - rank) ** 2 for place, rank in enumerate(order))
    assert 1 - 6 * squares / (13 * 168) == pytest.approx(rho, abs=5e-7)
    assert rho in {row.spearman for row in PAPER_HARDWARE}


def test_gamma_moves_with_the_device() -> None:
    rates = rates_of(0.00625, "Llama-3.1-8B", paper_hardware("H200"), "printed")
    assert rates.gamma == pytest.approx(0.002876, abs=5e-7)
    assert rates.turn(4000, 200) == pytest.approx(6300.7, abs=0.05)
    assert rates_of(0.00625, "", paper_hardware("h100"), "").turn(4000, 200) == 9000.0


def test_two_turns_four_ways() -> None:
    turns = [Turn(1000, 100, 0), Turn(3000, 50, 1024)]
    sums = total(price(plain(0.002), turns))
    assert (sums.full, sums.measured, sums.ideal) == pytest.approx((4500.0, 3476.0, 3400.0))
    exact = total(price(plain(0.002, growth=True), turns))
    assert exact.full == pytest.approx(4512.35, abs=1e-6)


def test_growth_against_the_plain_product() -> None:
    with_growth = plain(1.0, growth=True).decode(500, 10_000)
    assert with_growth / plain(1.0).decode(500, 10_000) == pytest.approx(10.999)


@pytest.mark.parametrize(
    ("gamma", "tokens"),
    [(0.00625, 160), (0.00388, 258), (0.00329, 304), (0.00175, 571), (0.00068, 1471)],
)
def test_context_at_which_decoding_a_token_equals_prefilling_one(gamma: float, tokens: int) -> None:
    assert 1 / gamma == pytest.approx(tokens, abs=0.5)


def test_weight_reads_at_batch_1_and_256() -> None:
    model = dense("d", 8e9, layers=32, kv_heads=8, head_dim=128, q_heads=32)
    device = DevicePeak("ref", 1513e12, 2.0e12, "sparse fp16", "paper")
    for batch, expected in ((1, 756.5), (256, 2.955)):
        rates = exact_rates(model, device, ExactTerms(batch=batch))
        assert rates.decode_token == pytest.approx(expected, abs=0.01)
    assert exact_rates(model, device, ExactTerms(batch=4096)).decode_token == 1.0
    assert exact_rates(model, device, ExactTerms(batch=None)).decode_token == 0.0


def test_prefill_attention_of_llama_8b_at_16k() -> None:
    model = dense("d", 8e9, layers=32, kv_heads=8, head_dim=128, q_heads=32)
    device = DevicePeak("ref", 1513e12, 2.0e12, "sparse fp16", "paper")
    rates = exact_rates(model, device)
    assert rates.groups[0].attention == pytest.approx(3.3e-5, rel=0.01)
    assert rates.prefill(16_384) / 16_384 == pytest.approx(1.27, abs=0.005)


def test_experts_touched_grow_with_the_batch() -> None:
    experts = Experts(count=128, per_token=8, weight_bytes=1000.0)
    assert experts.touched_bytes(1) == pytest.approx(62.5)
    assert 62.5 < experts.touched_bytes(16) < experts.touched_bytes(256) < 1000.0


def test_a_full_window_stops_growing() -> None:
    rates = PteRates("m", "h", "exact", "", "", (LayerGroup(0.01, 0.0, 128),))
    assert rates.decode(10_000, 10) == pytest.approx(0.01 * 128 * 10)
    assert rates.decode(100, 100) == pytest.approx(
        0.01 * sum(min(100 + t, 128) for t in range(100))
    )


def test_paper_mode_knows_no_reuse() -> None:
    rates = rates_of(0.002, "m", paper_hardware("H100-PCIe"), "")
    sums = total(price(rates, [Turn(1000, 100, 0), Turn(3000, 50, 1024)]))
    assert sums.measured == sums.full == pytest.approx(4500.0)


def test_unknown_cached_tokens_are_not_zero() -> None:
    costs = price(plain(0.002), [Turn(1000, 100, 0), Turn(3000, 50, None)])
    assert costs[0].measured is not None
    assert costs[1].measured is None and costs[1].lost_tokens is None
    sums = total(costs)
    assert sums.measured is None and sums.ideal < sums.full == sums.value


def test_unknown_hardware_offers_the_nearest() -> None:
    with pytest.raises(ProfileError, match="nearest: H200"):
        paper_hardware("H20")


def test_impossible_batch_is_refused() -> None:
    with pytest.raises(ProfileError, match="at least 1"):
        ExactTerms(batch=0)


_turns = st.lists(
    st.builds(
        Turn,
        context_tokens=st.integers(0, 100_000),
        decode_tokens=st.integers(0, 5_000),
        cached_tokens=st.none() | st.integers(0, 100_000),
        new_segment=st.booleans(),
        tool_tokens=st.integers(0, 100_000),
        new_tool_tokens=st.integers(0, 20_000),
        dropped_tokens=st.just(0),
    ),
    max_size=12,
)
_rates = st.builds(
    lambda gamma, attention, window, token: PteRates(
        "m", "h", "exact", "", "", (LayerGroup(gamma, attention), LayerGroup(gamma, 0.0, window)),
        decode_token=token,
    ),
    st.floats(0, 0.02), st.floats(0, 1e-4), st.integers(1, 4096), st.floats(0, 50),
)  # fmt: skip


@given(_rates, _turns)
def test_causes_add_up_and_ideal_is_least(rates: PteRates, turns: list[Turn]) -> None:
    for turn, cost in zip(turns, price(rates, turns), strict=True):
        causes = (
            cost.prompt + cost.tool_answers + cost.re_prefill + cost.reasoning + cost.context_reads
        )
        assert causes == pytest.approx(cost.value, rel=1e-9, abs=1e-6)
        assert min(cost.prompt, cost.tool_answers, cost.reasoning, cost.context_reads) >= -1e-9
        assert cost.ideal <= cost.full + 1e-9
        held = min(turn.cached_tokens or 0, turn.context_tokens)
        expected = rates.turn(turn.context_tokens, turn.decode_tokens, held)
        if cost.measured is not None:
            assert cost.measured == pytest.approx(expected, rel=1e-9, abs=1e-6)


@given(_rates, _turns)
def test_perfect_reuse_never_costs_more(rates: PteRates, turns: list[Turn]) -> None:
    before, after = total(price(rates, turns)), total(price(rates, ideal_turns(turns)))
    assert after.value <= before.value + 1e-6
    assert after.re_prefill == pytest.approx(0.0, abs=1e-6)


@given(st.integers(0, 300), st.integers(0, 300), st.none() | st.integers(1, 400))
def test_reads_equals_its_sum(start: int, count: int, window: int | None) -> None:
    limit = window or 10**9
    assert reads(start, count, window) == sum(min(start + t, limit) for t in range(count))


@given(_rates, st.integers(0, 300), st.integers(0, 300), st.booleans())
def test_decoding_is_what_each_token_reads(
    rates: PteRates, context: int, decoded: int, growth: bool
) -> None:
    rates = replace(rates, growth=growth)
    read = 0.0
    for token in range(decoded):
        for group in rates.groups:
            seen = context + token if growth else context
            read += group.gamma * min(seen, group.window_tokens or seen)
    assert rates.decode(context, decoded) == pytest.approx(read + rates.decode_token * decoded)
    parts = (rates.kv_reads(context, decoded), rates.own_decode(context, decoded))
    assert rates.decode_parts(context, decoded) == parts


@given(_rates, st.integers(0, 300), st.integers(0, 300))
def test_prefill_is_what_each_token_reads(rates: PteRates, held: int, new: int) -> None:
    read = 0.0
    for token in range(new):
        for group in rates.groups:
            read += group.attention * min(held + token, group.window_tokens or held + token)
    assert rates.prefill(held + new, held) == pytest.approx(new + read)


def test_dropped_thinking_is_no_loss() -> None:
    turns = [Turn(2000, 5000, 0, dropped_tokens=4800), Turn(5200, 50, 2200)]
    (_, second) = price(plain(0.002), turns)
    assert (second.kept_tokens, second.lost_tokens) == (2200, 0)
    assert second.re_prefill == 0.0


def test_carry_cost_is_prefill_plus_reads() -> None:
    turns = [Turn(1000, 100, 0), Turn(3000, 50, 1100), Turn(3050, 10, 0)]
    rates = plain(0.002)
    costs = price(rates, turns)
    lost_again = 900 / 3050 * costs[2].re_prefill
    expected = 900 + 0.002 * 900 * (50 + 10) + lost_again
    assert carry_cost(rates, 900, turns, costs, 1) == pytest.approx(expected)


def test_correlations_share_ranks_of_equal_values() -> None:
    assert spearman([1, 2, 2, 4], [10, 20, 20, 40]) == 1.0
    assert pearson([1.0], [2.0]) is None
    with pytest.raises(ValueError, match="pairs"):
        pearson([1.0], [])


REAL = {  # paper's row: (our profile, KV bytes a token)
    "Qwen2.5-7B-Instruct": ("qwen2.5-7b", 57_344),
    "Qwen2.5-32B-Instruct": ("qwen2.5-32b", 262_144),
    "Qwen2.5-72B-Instruct": ("qwen2.5-72b", 327_680),
    "Qwen3-32B": ("qwen3-32b", 262_144),
    "Llama-3.1-8B-Instruct": ("llama-3.1-8b", 131_072),
    "Llama-3.1-70B-Instruct": ("llama-3.1-70b", 327_680),
    "Qwen3-30B-A3B": ("qwen3-30b-a3b", 98_304),
    "GLM-4.5": ("glm-4.5", 376_832),
    "GPT-OSS-120B": ("gpt-oss-120b", 73_728),
    "DeepSeek-V3.1-Terminus": ("deepseek-v3", 70_272),
}


@pytest.mark.parametrize("name", REAL)
def test_exact_geometry_comes_from_the_real_configuration(name: str) -> None:
    profile, kv_bytes = REAL[name]
    geometry = geometry_of(load_model(profile))
    assert geometry.kv_bytes_per_token == kv_bytes
    row = paper_model(name)
    assert row is not None
    # The paper's parameter counts are rounded, or without embeddings; the gammas differ by that.
    expected = KV_BYTES_AND_TRUE_GAMMA[name][1] * row.active_params / geometry.active_params
    assert true_gamma(geometry, REFERENCE_HOI) == pytest.approx(expected, rel=1e-3)
    assert geometry.active_params == pytest.approx(row.active_params, rel=0.18)


def test_exact_rates_by_name() -> None:
    rates = Pricing("exact", "h200").rates("Llama-3.1-8B-Instruct")
    assert rates.peak == "dense bf16, 206.0 FLOP/byte"
    assert rates.gamma == pytest.approx(131_072 * 989e12 / 4.8e12 / (2 * 8.03e9), rel=1e-3)
    sparse = Pricing("exact", "h200", peak="sparse").rates("llama-3.1-8b")
    assert sparse.gamma == pytest.approx(2 * rates.gamma, rel=2e-3)
    assert Pricing("exact", "h200", peak="reached").rates("llama-3.1-8b").gamma < rates.gamma


def test_half_of_gpt_oss_stops_at_its_window() -> None:
    rates = Pricing("exact", "h100-sxm").rates("gpt-oss-120b")
    long, longer = rates.kv_reads(10_000, 1), rates.kv_reads(20_000, 1)
    full = next(group.gamma for group in rates.groups if group.window_tokens is None)
    assert longer - long == pytest.approx(10_000 * full)
    assert full == pytest.approx(rates.gamma / 2)


def test_paper_mode_of_an_unlisted_model_uses_the_formula() -> None:
    rates = Pricing("paper").rates("qwen2.5-3b")
    assert "formula" in rates.evidence and rates.gamma > 0
    assert Pricing("paper", "A100").rates("GLM-4.5").gamma == pytest.approx(0.00183 * 322.5 / 756.5)


@pytest.mark.parametrize(
    ("model", "hardware", "near"),
    [("llama-3.1-9b", "h200", "llama-3.1-8b"), ("llama-3.1-8b", "h2000", "h200")],
)
def test_unknown_names_offer_the_nearest(model: str, hardware: str, near: str) -> None:
    with pytest.raises(ProfileError, match=near):
        Pricing("exact", hardware).rates(model)
