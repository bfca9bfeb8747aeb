"""What engine steps cost, in every unit at once: the answer of the formula (`costmodel.step`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from costmodel.evidence import Grade, weakest


@dataclass(frozen=True, slots=True)
class Cost:
    """What one step, or several, cost.

    Attributes:
        time_s: wall time; the parts below add up to it.
        linear_s, prefill_attention_s, decode_attention_s, head_s, select_s, link_s, overhead_s:
            layers' matrices; attention of prompts and of decodes; logits; choice of tokens or
            keys; exchange between devices; what no work explains.
        flops: arithmetic, as executed (tiles included).
        weight_bytes, expert_bytes, kv_read_bytes, kv_write_bytes: memory traffic; expert bytes are
            not counted in weight bytes.
        kv_bytes: KV cache and state of the sequences in the step, after it.
        energy_j: energy of the devices.
        usd: money; None when the hardware profile has no price.
        evidence: the weakest grade among the numbers used.
    """

    time_s: float = 0.0
    linear_s: float = 0.0
    prefill_attention_s: float = 0.0
    decode_attention_s: float = 0.0
    head_s: float = 0.0
    select_s: float = 0.0
    link_s: float = 0.0
    overhead_s: float = 0.0
    flops: float = 0.0
    weight_bytes: float = 0.0
    expert_bytes: float = 0.0
    kv_read_bytes: float = 0.0
    kv_write_bytes: float = 0.0
    kv_bytes: float = 0.0
    energy_j: float = 0.0
    usd: float | None = None
    evidence: Grade = "measured"

    def __add__(self, other: Cost) -> Cost:
        """Both after each other; `kv_bytes` is the larger."""
        money = None if self.usd is None or other.usd is None else self.usd + other.usd
        return Cost(
            self.time_s + other.time_s,
            self.linear_s + other.linear_s,
            self.prefill_attention_s + other.prefill_attention_s,
            self.decode_attention_s + other.decode_attention_s,
            self.head_s + other.head_s,
            self.select_s + other.select_s,
            self.link_s + other.link_s,
            self.overhead_s + other.overhead_s,
            self.flops + other.flops,
            self.weight_bytes + other.weight_bytes,
            self.expert_bytes + other.expert_bytes,
            self.kv_read_bytes + other.kv_read_bytes,
            self.kv_write_bytes + other.kv_write_bytes,
            max(self.kv_bytes, other.kv_bytes),
            self.energy_j + other.energy_j,
            money,
            weakest((self.evidence, other.evidence)),
        )


def total(costs: Sequence[Cost]) -> Cost:
    """The sum of steps that run after each other."""
    result = Cost() if not costs else costs[0]
    for cost in costs[1:]:
        result += cost
    return result
