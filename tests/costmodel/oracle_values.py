"""What the cost model computes for each record of fixtures/oracles.yaml, in the record's own keys.

A function of a record's `given` returns the values to compare; what it leaves out must have a
reason in `oracle_gaps`. A key maps to a number, a list, a nested mapping, or a `Bound`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from oracle_records import Bound, Given, Values
from oracle_sarathi import SARATHI

from costmodel.attention import DENSE, AttentionProfile
from costmodel.batching import (
    chunked_steps,
    layer_groups,
    layered_expert_traffic,
    packed_chunks,
)
from costmodel.cost import total
from costmodel.hardware import load_hardware
from costmodel.layers import capped_pairs
from costmodel.models import ModelProfile, load_model
from costmodel.step import PrefillChunk, StepLoad, StepModel
from costmodel.techniques.compressed_attention import ccgqa_block, gqa_block, mha_block
from costmodel.techniques.fastkv import fastkv
from costmodel.techniques.recurrent import kv_loads
from costmodel.techniques.segment_pruning import (
    KEPT_RATIOS,
    KEPT_TOKENS,
    PRUNE_LAYERS,
    START_TOKENS,
    adaptinfer_schedule,
    segment_pruning,
)
from costmodel.techniques.sparse_prefill import BUDGETS, mlp_activation_bytes, sparse_prefill
from costmodel.techniques.swiftkv import KEPT_LAYERS, swiftkv

# --- Prepacking, Stream2LLM ----------------------------------------------------------------------


def prepacking_mix(given: Given) -> Values:
    lengths = [64] * 90 + [2048] * 10
    padded = sum(chunk.tokens for chunk in packed_chunks(lengths, "padded"))
    useful = sum(chunk.tokens for chunk in packed_chunks(lengths, "varlen"))
    return {"speedup": padded / useful}


def stream2llm_block_bytes(given: Given) -> Values:
    model = load_model(given["model"])
    return {"bytes": given["block_tokens"] * model.kv_bytes_per_token}


# --- SwiftKV -------------------------------------------------------------------------------------


def _prefill_flops(model: ModelProfile, attention: AttentionProfile, tokens: int) -> float:
    """Linear FLOP of a prompt, without the head and without attention."""
    return sum(
        2 * (x.params_kv * x.kv_tokens_share + x.params_rest * x.rest_tokens_share) * tokens
        for x in attention.layers(model)
    )


def _swift_ratio(name: str, keep_share: float) -> float:
    model = load_model(name)
    technique = swiftkv(round(model.n_layers * keep_share))
    return _prefill_flops(model, technique, 1024) / _prefill_flops(model, DENSE, 1024)


def swiftkv_prefill_ratio(given: Given) -> Values:
    names = ("llama-8b", "llama-70b", "smollm2-135m")
    return {"flop_ratio": {name: _swift_ratio(name, given["keep_fraction"]) for name in names}}


def swiftkv_tflops(given: Given) -> Values:
    params = float(given["model"].removesuffix("b")) * 1e9
    return {"dense_equiv_tflops_per_gpu": 2 * params * given["tok_s"] / given["gpus"] / 1e12}


def _swift_kv(group: int, kv_bytes: float = 2.0) -> float:
    plain = load_model("llama-3.1-8b")
    model = replace(plain, kv_bytes_per_element=kv_bytes)
    hardware = load_hardware("h100")
    swift = StepModel(model, hardware, swiftkv(16, group)).kv_bytes(1)
    return 1 - swift / StepModel(plain, hardware).kv_bytes(1)


def swiftkv_headline(given: Given) -> Values:
    return {
        "prefill_reduction": 1 - _swift_ratio("llama-8b", 0.5),
        "kv_reduction": _swift_kv(2, kv_bytes=1.0),
    }


def swiftkv_kv_reduction(given: Given) -> Values:
    return {"kv_reduction": [_swift_kv(group) for group in given["group"]]}


def swiftkv_kv_fp8(given: Given) -> Values:
    return {"kv_reduction": _swift_kv(given["group"], kv_bytes=1.0)}


def swiftkv_recipes(given: Given) -> Values:
    names = {
        "llama-8b": "llama-3.1-8b", "llama-70b": "llama-3.1-70b", "qwen2.5-7b": "qwen2.5-7b",
        "qwen2.5-14b": "qwen2.5-14b", "qwen2.5-32b": "qwen2.5-32b",
    }  # fmt: skip
    kept = {key: [KEPT_LAYERS[n], load_model(n).n_layers] for key, n in names.items()}
    return {"kept_layers": kept}


# --- FastKV --------------------------------------------------------------------------------------


def _fastkv_prefill(name: str, ctx: int, technique: AttentionProfile) -> StepModel:
    return StepModel(load_model(name), load_hardware("a100-80gb"), technique)


def fastkv_latency(given: Given) -> Values:
    hardware = replace(load_hardware("a100-80gb"), cache_copy_factor=2.5)
    model, ctx = load_model(given["model"]), given["ctx"]
    technique = fastkv(given["tsp_layer"], given["tsp_rate"], given["retain"])
    plain, fast = StepModel(model, hardware), StepModel(model, hardware, technique)
    return {
        "prefill_speedup": plain.step_s(((ctx, 0),), 0, 0) / fast.step_s(((ctx, 0),), 0, 0),
        "decode_speedup_hf_cache": plain.step_s((), 1, ctx) / fast.step_s((), 1, ctx),
    }


def fastkv_decode_paged(given: Given) -> Values:
    hardware = replace(load_hardware("a100-80gb"), cache_copy_factor=given["cache_copy_factor"])
    model, ctx = load_model(given["model"]), given["ctx"]
    fast = StepModel(model, hardware, fastkv(retain=given["retain"]))
    return {
        "decode_speedup": StepModel(model, hardware).step_s((), 1, ctx) / fast.step_s((), 1, ctx)
    }


def fastkv_compute_rate(given: Given) -> Values:
    model = load_model("llama-3.1-8b")
    technique = fastkv(given["tsp_layer"], given["tsp_rate"])
    rate = _prefill_flops(model, technique, 1) / _prefill_flops(model, DENSE, 1)
    return {"prefill_compute_rate": rate}


def fastkv_attention_rate(given: Given) -> Values:
    model, n = load_model("llama-3.1-8b"), 131072
    kept = sum(x.pairs(n, 0) for x in fastkv(given["tsp_layer"], given["tsp_rate"]).layers(model))
    return {"prefill_attention_rate": kept / sum(x.pairs(n, 0) for x in DENSE.layers(model))}


def fastkv_prefill_by_length(given: Given) -> Values:
    model, hardware = load_model(given["model"]), load_hardware("a100-80gb")
    plain, fast = StepModel(model, hardware), StepModel(model, hardware, fastkv())
    loads = [StepLoad((PrefillChunk(n),)) for n in given["ctx"]]
    return {"prefill_speedup": [plain.cost(x).flops / fast.cost(x).flops for x in loads]}


def fastkv_ministral_e2e(given: Given) -> Values:
    hardware = replace(load_hardware("a100-80gb"), cache_copy_factor=2.5)
    model, ctx, outputs = load_model(given["model"]), given["ctx"], given["outputs"]

    def seconds(step: StepModel) -> float:
        return step.step_s(((ctx, 0),), 0, 0) + outputs * step.step_s((), 1, ctx + outputs // 2)

    fast = StepModel(model, hardware, fastkv())
    return {"seconds": [seconds(StepModel(model, hardware)), seconds(fast)]}


# --- Layered Prefill -----------------------------------------------------------------------------

_PRINTED_COVERAGE = {"arxiv": 0.55, "sharegpt": 0.863}
"""c_d of the two traces: coverage at 32 and at 128 tokens, as Table 1 prints it."""


def layered_coverage(given: Given) -> Values:
    experts = load_model("qwen3-30b-a3b").experts
    assert experts is not None
    assert (experts.n_experts, experts.top_k) == (given["experts"], given["top_k"])
    return {
        "coverage": [experts.expert_coverage(n) for n in given["tokens"]],
        "below": {str(n): Bound(experts.expert_coverage(n), "at most") for n in (16, 64)},
    }


def _layered_cut(tokens: int, trace: str) -> float:
    return 1 - layered_expert_traffic(_PRINTED_COVERAGE[trace], layer_groups(tokens))


def layered_traffic(given: Given) -> Values:
    traces = ("arxiv", "sharegpt")
    return {"cut": {trace: _layered_cut(given[trace]["tokens"], trace) for trace in traces}}


def layered_rederived(given: Given) -> Values:
    return {
        "cut": {"arxiv": _layered_cut(9194, "arxiv"), "sharegpt": _layered_cut(2340, "sharegpt")}
    }


# --- Qwen2.5-1M ----------------------------------------------------------------------------------


def _million(name: str, devices: int, attention: AttentionProfile) -> StepModel:
    return StepModel(load_model(name), load_hardware("h20"), attention, devices=devices)


def _prefill_s(step: StepModel, tokens: int) -> float:
    return sum(
        step.step_s(((chunk.tokens, chunk.context),), 0, 0)
        for load in chunked_steps(tokens, 32768, ())
        for chunk in load.prefills
    )


def qwen25_1m_ttft_14b(given: Given) -> Values:
    n = given["tokens"]
    dense = _prefill_s(_million("qwen2.5-14b-1m", 8, DENSE), n)
    sparse = _prefill_s(_million("qwen2.5-14b-1m", 8, sparse_prefill()), n)
    return {"seconds": {"dense": dense, "sparse": sparse}}


def qwen25_1m_range(given: Given) -> Values:
    n = given["tokens"]
    speedups, shares = [], []
    for name, devices in (("qwen2.5-7b-1m", 4), ("qwen2.5-14b-1m", 8)):
        dense = _million(name, devices, DENSE)
        sparse = _million(name, devices, sparse_prefill())
        speedups.append(_prefill_s(dense, n) / _prefill_s(sparse, n))
        cost = total([dense.cost(load) for load in chunked_steps(n, 32768, ())])
        shares.append(cost.prefill_attention_s / cost.time_s)
    return {"speedup": speedups, "attention_share_above": Bound(min(shares), "at least")}


def _activations(given: Given, name: str) -> tuple[float, float]:
    model = load_model(name)
    whole = mlp_activation_bytes(model, given["tokens"])
    return whole / 2**30, 1 - mlp_activation_bytes(model, given["chunk"]) / whole


def qwen25_1m_activation(given: Given) -> Values:
    size, saving = _activations(given, "qwen2.5-7b-1m")
    return {"mlp_activation_gb": size, "chunk_saving": saving}


def qwen25_1m_activation_derived(given: Given) -> Values:
    assert load_model("qwen2.5-7b-1m").d_ff == given["d_ff"]
    size, saving = _activations(given, "qwen2.5-7b-1m")
    return {"mlp_activation_gib": size, "chunk_saving": saving}


def qwen25_1m_budgets(given: Given) -> Values:
    return {
        "mean_v_s": {
            "14b-1m": list(BUDGETS["qwen2.5-14b-1m"]),
            "7b-1m": list(BUDGETS["qwen2.5-7b-1m"]),
        }
    }


def _bound(tokens: int) -> float:
    """Pairs of dense causal attention over those within the 14B model's mean budget."""
    return (tokens * (tokens + 1) / 2) / capped_pairs(tokens, 0, sum(BUDGETS["qwen2.5-14b-1m"]))


def qwen25_1m_kernels(given: Given) -> Values:
    efficiency = load_hardware(given["hw"]).kernel_efficiency["vertical-slash"]
    return {"over_flashattention": {"minference": _bound(given["tokens"]) * efficiency}}


def qwen25_1m_minference_kernel(given: Given) -> Values:
    efficiency = load_hardware("a100").kernel_efficiency["vertical-slash"]
    sizes = [1_000_000 if k == 1000 else k * 1024 for k in given["tokens_k"]]
    return {"speedup": [_bound(n) * efficiency for n in sizes]}


def qwen25_1m_token_bound(given: Given) -> Values:
    sizes = [1_000_000 if k == 1000 else k * 1024 for k in given["tokens_k"]]
    printed = {64: 1.64, 1000: 15}
    shares = [printed[1000] / _bound(1_000_000), printed[64] / _bound(64 * 1024)]
    return {"bound": [_bound(n) for n in sizes], "kernel_eff": shares}


# --- CCA -----------------------------------------------------------------------------------------


def _block_s(kind: str, width: int, tokens: int, *, causal: bool) -> float:
    """Prefill of one attention block on an H100, projections and attention."""
    blocks = {
        "mha": (mha_block(width), "dense"), "gqa8": (gqa_block(width, 8), "dense"),
        "cca4": (ccgqa_block(width, 4, 4), "cca-4x"),
        "ccgqa_2_8": (ccgqa_block(width, 2, 8), "ccgqa-2-8"),
    }  # fmt: skip
    block, kernel = blocks[kind]
    hardware = load_hardware("h100")
    rate = hardware.peak("bf16") * 0.6
    attention = block.pair_flops * (tokens * (tokens + 1) / 2 if causal else tokens * tokens)
    efficiency = hardware.kernel_efficiency.get(kernel, 1.0)
    return (block.linear_flops_per_token * tokens + attention / efficiency) / rate


def cca_prefill(given: Given) -> Values:
    width, tokens = given["E"], given["S"]
    plain = {
        k: _block_s(k, width, tokens, causal=False) for k in ("mha", "gqa8", "cca4", "ccgqa_2_8")
    }
    causal = {k: _block_s(k, width, tokens, causal=True) for k in ("mha", "cca4")}

    def within(other: str, kind: str) -> Bound:
        return Bound(plain[other] / plain[kind], "in range")

    return {
        "cca4": {"vs_mha": within("mha", "cca4"), "vs_gqa8": within("gqa8", "cca4")},
        "ccgqa_2_8": {"vs_mha": within("mha", "ccgqa_2_8"), "vs_gqa8": within("gqa8", "ccgqa_2_8")},
        "forward_causal": Bound(causal["mha"] / causal["cca4"], "in range"),
    }


def cca_flops(given: Given) -> Values:
    width, tokens = given["E"], given["S"]
    dense = mha_block(width).prefill_flops(tokens)
    cca = dense / ccgqa_block(width, 4, 4).prefill_flops(tokens)
    mixed = dense / ccgqa_block(width, 2, 8).prefill_flops(tokens)
    # The middle of the printed latency ranges over what FLOP promise.
    efficiency = {"cca4": 1.65 / cca, "ccgqa_2_8": 1.35 / mixed}
    return {"flop_ratio_vs_mha": {"cca4": cca, "ccgqa_2_8": mixed}, "kernel_eff": efficiency}


# --- AdaptInfer ----------------------------------------------------------------------------------


def adaptinfer_schedule_values(given: Given) -> Values:
    assert PRUNE_LAYERS[given["model"]] == tuple(given["prune_layers"])
    assert given["start_tokens"] == START_TOKENS
    return {"keep": {str(b): list(kept) for b, kept in KEPT_TOKENS[given["model"]].items()}}


def adaptinfer_schedule_other(given: Given) -> Values:
    return {
        "llava-1.5-13b": {str(b): list(kept) for b, kept in KEPT_TOKENS["llava-1.5-13b"].items()},
        "qwen2-vl": {
            "layers": list(PRUNE_LAYERS["qwen2-vl"]),
            "ratios": list(KEPT_RATIOS["qwen2-vl"]),
        },
    }


def adaptinfer_layer_average(given: Given) -> Values:
    schedules = [adaptinfer_schedule("llava-1.5-7b", budget) for budget in given["budget"]]
    return {"layer_average": [schedule.layer_average(32) for schedule in schedules]}


def _pruning_cut(budget: int, text_tokens: int) -> float:
    model, hardware = load_model("llava-1.5-7b"), load_hardware("a100")
    schedule = adaptinfer_schedule("llava-1.5-7b", budget)
    load = StepLoad((PrefillChunk(text_tokens + START_TOKENS, samples=False),))
    hardware = replace(hardware, tile_tokens=1)
    pruned = StepModel(model, hardware, segment_pruning(text_tokens, schedule)).cost(load)
    return 1 - pruned.flops / StepModel(model, hardware).cost(load).flops


def adaptinfer_latency(given: Given) -> Values:
    # A fifth of the latency lies outside the pruned part; the paper's text budget is 95 tokens.
    return {"cuda_latency_cut": (1 - 0.20) * _pruning_cut(64, 95)}


def adaptinfer_flops(given: Given) -> Values:
    cut = _pruning_cut(given["budget"], given["text_tokens"])
    return {"flop_cut": cut, "latency_outside": 1 - 0.613 / cut}


# --- Recurrent Transformer -----------------------------------------------------------------------


def recurrent_kv_loads(given: Given) -> Values:
    n = given["N"]
    return {"naive": kv_loads(n, tiled=False), "tiled": kv_loads(n, tiled=True)}


def _kv_of_shape(layers: int, width: int) -> float:
    shape = replace(
        load_model("llama-7b"), n_layers=layers, d_model=width, n_query_heads=width // 64,
        n_kv_heads=width // 64, head_dim=64,
    )  # fmt: skip
    return shape.kv_bytes_per_token


def recurrent_kv_bytes(given: Given) -> Values:
    own = _kv_of_shape(6, 2048)
    return {
        "kv_saving_vs_12x1408": 1 - own / _kv_of_shape(12, 1408),
        "kv_saving_vs_24x1024": 1 - own / _kv_of_shape(24, 1024),
    }


def recurrent_kv_claim(given: Given) -> Values:
    return {"kv_saving_about": 1 - _kv_of_shape(6, 2048) / _kv_of_shape(12, 1408)}


# --- EdgeCIM -------------------------------------------------------------------------------------

EDGECIM_MODELS = (
    "tinyllama-1.1b", "llama-3.2-1b", "llama-3.2-3b", "phi-3.5-mini", "qwen2.5-0.5b",
    "qwen2.5-1.5b", "qwen2.5-3b", "smollm2-1.7b", "smollm3-3b", "qwen3-0.6b", "qwen3-1.7b",
    "qwen3-4b",
)  # fmt: skip


def _decode_int4(name: str, hardware: str) -> StepModel:
    return StepModel(replace(load_model(name), weight_bytes_per_param=0.5), load_hardware(hardware))


def _tokens_per_s(name: str, hardware: str = "edgecim") -> float:
    return 1 / _decode_int4(name, hardware).step_s((), 1, 0)


def _joule_per_token(name: str, hardware: str = "edgecim") -> float:
    return _decode_int4(name, hardware).cost(StepLoad((), (0,))).energy_j


def edgecim_mean(given: Given) -> Values:
    rates = [_tokens_per_s(name) for name in EDGECIM_MODELS]
    mean = sum(rates) / len(rates)
    # A ratio of means: tokens a second over watts.
    watts = _joule_per_token("qwen3-4b") * _tokens_per_s("qwen3-4b")
    return {"tok_s": mean, "tok_per_j": mean / watts}


def edgecim_ratios(given: Given) -> Values:
    orin = _tokens_per_s("llama-3.2-1b", "orin-nano")
    energy = _joule_per_token("llama-3.2-1b", "orin-nano") / _joule_per_token("llama-3.2-1b")
    return {
        "vs_orin_nano_llama3.2_1b": {
            "throughput": _tokens_per_s("llama-3.2-1b") / orin, "energy": energy,
        },
        "vs_sa8255p_llama3.2_3b": {
            "throughput": _tokens_per_s("llama-3.2-3b") / _tokens_per_s("llama-3.2-3b", "sa8255p")
        },
    }  # fmt: skip


def edgecim_fitted(given: Given) -> Values:
    hardware = load_hardware("edgecim")
    names = {
        "llama3.2-1b": "llama-3.2-1b", "llama3.2-3b": "llama-3.2-3b",
        "smollm2-1.7b": "smollm2-1.7b", "qwen3-4b": "qwen3-4b",
    }  # fmt: skip
    mean = edgecim_mean(given)
    return {
        "stream_gb_s": hardware.memory_bytes_per_s / 1e9,
        "power_w": hardware.power_w,
        "mj_per_token": 1e3 / mean["tok_per_j"],
        "tok_s": {key: _tokens_per_s(name) for key, name in names.items()},
        "orin_nano_tok_s": _tokens_per_s("llama-3.2-1b", "orin-nano"),
    }


# --- the embedded engine's model -----------------------------------------------------------------


def engine_smollm2(given: Given) -> Values:
    model = replace(load_model("smollm2-135m"), weight_bytes_per_param=4, kv_bytes_per_element=4)
    linear = 2.0 * model.non_embedding_params
    pair = sum(layer.attention_flops_per_pair for layer in DENSE.layers(model))
    return {
        "params_m": model.params / 1e6,
        "linear_gflop_per_token": linear / 1e9,
        "lm_head_gflop": 2.0 * model.lm_head_params / 1e9,
        "attn_gflop_per_token_at_1024": pair * 1024 / 2 / 1e9,
        "kv_bytes_per_token_fp32": model.kv_bytes_per_token,
        "attn_equals_linear_at_tokens": linear / (pair / 2),
    }


COMPUTED: Mapping[str, Callable[[Given], Values]] = {
    **SARATHI,
    "prepacking.mix": prepacking_mix,
    "stream2llm.block_bytes": stream2llm_block_bytes,
    "swiftkv.prefill_ratio": swiftkv_prefill_ratio,
    "swiftkv.tflops": swiftkv_tflops,
    "swiftkv.headline": swiftkv_headline,
    "swiftkv.kv_reduction": swiftkv_kv_reduction,
    "swiftkv.kv_fp8": swiftkv_kv_fp8,
    "swiftkv.recipes": swiftkv_recipes,
    "fastkv.latency": fastkv_latency,
    "fastkv.decode_paged": fastkv_decode_paged,
    "fastkv.compute_rate": fastkv_compute_rate,
    "fastkv.attention_rate": fastkv_attention_rate,
    "fastkv.prefill_by_length": fastkv_prefill_by_length,
    "fastkv.ministral_e2e": fastkv_ministral_e2e,
    "layered.coverage": layered_coverage,
    "layered.traffic": layered_traffic,
    "layered.rederived": layered_rederived,
    "qwen25_1m.ttft_14b": qwen25_1m_ttft_14b,
    "qwen25_1m.range": qwen25_1m_range,
    "qwen25_1m.activation": qwen25_1m_activation,
    "qwen25_1m.activation_derived": qwen25_1m_activation_derived,
    "qwen25_1m.kernels": qwen25_1m_kernels,
    "qwen25_1m.budgets": qwen25_1m_budgets,
    "qwen25_1m.minference_kernel": qwen25_1m_minference_kernel,
    "qwen25_1m.token_bound": qwen25_1m_token_bound,
    "cca.prefill": cca_prefill,
    "cca.flops": cca_flops,
    "adaptinfer.schedule": adaptinfer_schedule_values,
    "adaptinfer.schedule_other": adaptinfer_schedule_other,
    "adaptinfer.layer_average": adaptinfer_layer_average,
    "adaptinfer.latency": adaptinfer_latency,
    "adaptinfer.flops": adaptinfer_flops,
    "recurrent.kv_loads": recurrent_kv_loads,
    "recurrent.kv_bytes": recurrent_kv_bytes,
    "recurrent.kv_claim": recurrent_kv_claim,
    "edgecim.mean": edgecim_mean,
    "edgecim.ratios": edgecim_ratios,
    "edgecim.fitted": edgecim_fitted,
    "engine.smollm2_135m": engine_smollm2,
}
