"""What the cost model computes for the records of SARATHI (`oracle_values`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from oracle_records import Bound, Given, Values

from costmodel.batching import (
    chunked_steps,
    mix_s,
    separate_s,
)
from costmodel.cost import total
from costmodel.hardware import load_hardware
from costmodel.models import load_model
from costmodel.step import PrefillChunk, StepLoad, StepModel


def _sarathi() -> StepModel:
    return StepModel(load_model("llama-13b-sarathi"), load_hardware("a6000"))


def _table2(n_prefill: int, n_decodes: int, ctx: int) -> tuple[float, float, float]:
    """(linear, attention, total) in ms."""
    chunks = (PrefillChunk(n_prefill),) if n_prefill else ()
    cost = _sarathi().cost(StepLoad(chunks, (ctx,) * n_decodes))
    attention = cost.prefill_attention_s + cost.decode_attention_s
    return 1e3 * cost.linear_s, 1e3 * attention, 1e3 * cost.time_s


def sarathi_table2_prefill(given: Given) -> Values:
    linear, attention, whole = _table2(given["prefill_tokens"], 0, 0)
    return {"linear_ms": linear, "attn_ms": attention, "total_ms": whole}


def sarathi_table2_decode(given: Given) -> Values:
    linear, attention, whole = _table2(0, given["decode_seqs"], given["ctx"])
    per_token = whole / given["decode_seqs"]
    return {
        "linear_ms": linear, "attn_ms": attention, "total_ms": whole, "ms_per_token": per_token,
    }  # fmt: skip


def sarathi_table2_mixed(given: Given) -> Values:
    linear, attention, whole = _table2(given["prefill_tokens"], given["decodes"], 1024)
    _, _, alone = _table2(given["prefill_tokens"], 0, 0)
    marginal = (whole - alone) / given["decodes"]
    return {
        "linear_ms": linear, "attn_ms": attention, "total_ms": whole,
        "marginal_ms_per_decode": marginal,
    }  # fmt: skip


def sarathi_fig7(given: Given) -> Values:
    model = _sarathi()
    return {"iter_ms": [1e3 * model.step_s(((n, 0),), 0, 0) for n in given["tokens"]]}


def _gains(seq: int, batch: int, p_to_d: float, chunk: int) -> tuple[float, float]:
    """(decode speedup, throughput gain) of decode-maximal batching over separate steps."""
    model = _sarathi()
    outputs = seq / (p_to_d + 1)
    prompt = round(seq - outputs)
    gain = separate_s(model, prompt, outputs, batch) / mix_s(model, prompt, outputs, chunk, batch)
    alone = model.step_s((), batch, batch * seq) / batch
    riders = batch - 1
    fused = model.step_s(((chunk - riders, 0),), riders, riders * seq)
    marginal = (fused - model.step_s(((chunk - riders, 0),), 0, 0)) / riders
    return alone / marginal, gain


def sarathi_table4(given: Given) -> Values:
    speedup, gain = _gains(given["seq"], given["batch"], given["p_to_d"], given["chunk"])
    return {"decode_speedup": speedup, "throughput_gain": gain}


def sarathi_pd_peaks(given: Given) -> Values:
    seq, batch = given["seq"], given["batch"]
    peaks, mixes = [], []
    for chunk in given["chunk"]:
        gain, mix = max((_gains(seq, batch, mix, chunk)[1], mix) for mix in range(2, 101))
        peaks.append(gain)
        mixes.append(mix)
    return {"peak_gain": peaks, "at_p_to_d": mixes}


def sarathi_decode_vs_prefill_token(given: Given) -> Values:
    model = _sarathi()
    prefill_token = model.step_s(((1024, 0),), 0, 0) / 1024
    decode = [model.step_s((), b, b * 1024) / b for b in given["batch"]]
    return {"decode_cost_over_prefill_token": [d / prefill_token for d in decode]}


def sarathi_chunk_loss(given: Given) -> Values:
    model = _sarathi()
    whole = model.cost(StepLoad((PrefillChunk(1024),)))
    chunked = {
        c: total([model.cost(s) for s in chunked_steps(1024, c, ())]) for c in given["chunk"]
    }
    rates = {
        n: n / model.cost(StepLoad((PrefillChunk(n),))).linear_s for n in (256, 384, 512, 1024)
    }
    overheads = [chunked[c].time_s / whole.time_s - 1 for c in (256, 512)]
    return {
        "peak_loss_at_256": 1 - rates[256] / rates[1024],
        "saturates_at": min(n for n, rate in rates.items() if rate > 0.999 * rates[1024]),
        "attn_factor_at_64": chunked[64].prefill_attention_s / whole.prefill_attention_s,
        "total_factor_at_64": chunked[64].time_s / whole.time_s,
        "total_overhead_256_512": [Bound(overhead, "at most") for overhead in overheads],
    }


def sarathi_efficiencies(given: Given) -> Values:
    model = load_model("llama-13b-sarathi")
    prefill = 2 * model.params * 1024 / 224.8e-3
    weights = model.weight_bytes / 44.28e-3
    kv = 4 * 1024 * model.kv_bytes_per_token / 5.68e-3
    peak, bandwidth = given["peak_tflops"] * 1e12, given["mem_gb_s"] * 1e9
    return {
        "prefill_tflops": prefill / 1e12, "weight_gb_s": weights / 1e9, "kv_gb_s": kv / 1e9,
        "e_c": prefill / peak, "e_w": weights / bandwidth, "e_kv": kv / bandwidth,
    }  # fmt: skip


def sarathi_batch_limit(given: Given) -> Values:
    return {"batch": _sarathi().max_sequences(given["l_max"])}


def sarathi_rederived(given: Given) -> Values:
    rows = [_gains(1024 * int(row[0]), 6, 50, 256) for row in given["rows"]]
    return {
        "throughput_gain": [gain for _, gain in rows],
        "decode_speedup": [speedup for speedup, _ in rows],
    }


SARATHI: Mapping[str, Callable[[Given], Values]] = {
    "sarathi.table2.prefill": sarathi_table2_prefill,
    "sarathi.table2.decode": sarathi_table2_decode,
    "sarathi.table2.mixed": sarathi_table2_mixed,
    "sarathi.fig7": sarathi_fig7,
    "sarathi.table4.a6000.1k": sarathi_table4,
    "sarathi.table4.a6000.2k": sarathi_table4,
    "sarathi.table4.a6000.3k": sarathi_table4,
    "sarathi.pd_peaks": sarathi_pd_peaks,
    "sarathi.decode_vs_prefill_token": sarathi_decode_vs_prefill_token,
    "sarathi.chunk_loss": sarathi_chunk_loss,
    "sarathi.efficiencies": sarathi_efficiencies,
    "sarathi.batch_limit": sarathi_batch_limit,
    "sarathi.rederived": sarathi_rederived,
}
