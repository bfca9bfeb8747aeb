"""Prefill Token Equivalents: what a tool-using trajectory costs, in prefilled tokens.

The metric is that of "Prefill Token Equivalents" (arXiv 2604.05404 v2, section 3):

    PTE = sum over turns of  Dp + gamma * L * D

with `Dp` the tokens prefilled for a turn, `L` the context when decoding starts, `D` the tokens
decoded, and `gamma` the cost of reading one token's KV for one decode step, in prefilled tokens.
The paper lets every tool pause evict the cache (`Dp = L`); with `cached` tokens measured it is
`Dp = L - cached`, and the decode term stays, because a cached token is still read at every step.

`PteRates` are the prices of one (model, hardware) pair: `costmodel.pte_paper` has those of the
publication, `costmodel.pte_exact` those of a model's real geometry. This module prices turns.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

Mode = Literal["paper", "exact"]


@dataclass(frozen=True, slots=True)
class LayerGroup:
    """Layers that see the same part of the context.

    Attributes:
        gamma: PTE of reading one token's KV in these layers, per decoded token.
        attention: PTE of one (query, key) pair in these layers during prefill; 0 leaves it out.
        window_tokens: a layer sees at most this many tokens back; None sees all.
    """

    gamma: float
    attention: float = 0.0
    window_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class PteRates:
    """Prices of one model on one device, in prefilled tokens.

    Attributes:
        model, hardware: names, as shown.
        mode: "paper" or "exact".
        evidence: where the numbers come from, in words.
        peak: the arithmetic peak they rest on, such as "dense bf16".
        groups: layers by what they see.
        growth: whether a decoded token is read by those after it in the same turn
            (`L*D + D*(D-1)/2` token reads instead of `L*D`).
        decode_token: PTE of one decoded token apart from the KV it reads: the weights read by the
            step, shared by `batch` sequences, or its arithmetic where that takes longer.
        batch: sequences that share a decode step; None where weight reads are left out.
        cache_counts: whether measured cache reuse is credited (exact) or not (paper).
    """

    model: str
    hardware: str
    mode: Mode
    evidence: str
    peak: str
    groups: tuple[LayerGroup, ...]
    growth: bool = True
    decode_token: float = 0.0
    batch: float | None = None
    cache_counts: bool = True

    @property
    def gamma(self) -> float:
        """PTE per context token and decoded token while no window is full."""
        return sum(group.gamma for group in self.groups)

    def prefill(self, context_tokens: int, cached_tokens: int = 0) -> float:
        """PTE of prefilling a context of which `cached_tokens` leading ones are held.

        Example:
            >>> plain(0.002).prefill(3000, 1024)
            1976.0
        """
        new = context_tokens - cached_tokens
        cost = float(new)
        if new <= 0:
            return cost
        for group in self.groups:
            if group.attention:
                if group.window_tokens is None:  # `reads`, without a call for the usual case
                    pairs = new * cached_tokens + new * (new - 1) / 2
                else:
                    pairs = reads(cached_tokens, new, group.window_tokens)
                cost += group.attention * pairs
        return cost

    def kv_reads(self, context_tokens: int, decode_tokens: int) -> float:
        """PTE of the context's KV read while decoding: gamma * L * D.

        Example:
            >>> plain(0.00625).kv_reads(4000, 200)
            5000.0
        """
        return self.decode_parts(context_tokens, decode_tokens)[0]

    def own_decode(self, context_tokens: int, decode_tokens: int) -> float:
        """PTE of decoding apart from the context's KV: the turn's own tokens read again by those
        after them, and each token's share of the weights."""
        return self.decode_parts(context_tokens, decode_tokens)[1]

    def decode_parts(self, context_tokens: int, decode_tokens: int) -> tuple[float, float]:
        """(`kv_reads`, `own_decode`), both in one pass over the layers."""
        kv = 0.0
        own = self.decode_token * decode_tokens
        pairs = decode_tokens * (decode_tokens - 1) / 2  # that read each other, without a window
        for group in self.groups:
            gamma, window = group.gamma, group.window_tokens
            if window is None:
                kv += gamma * context_tokens
                if self.growth:
                    own += gamma * pairs
                continue
            held = min(context_tokens, window)
            kv += gamma * held
            if self.growth:
                seen = reads(context_tokens, decode_tokens, window)
                own += gamma * (seen - held * decode_tokens)
        return kv * decode_tokens, own

    def decode(self, context_tokens: int, decode_tokens: int) -> float:
        """PTE of decoding `decode_tokens` after `context_tokens`."""
        kv, own = self.decode_parts(context_tokens, decode_tokens)
        return kv + own

    def turn(self, context_tokens: int, decode_tokens: int, cached_tokens: int = 0) -> float:
        """PTE of one turn.

        Example:
            >>> plain(0.00625).turn(4000, 200)
            9000.0
        """
        return self.prefill(context_tokens, cached_tokens) + self.decode(
            context_tokens, decode_tokens
        )


def plain(gamma: float, *, growth: bool = False, name: str = "given gamma") -> PteRates:
    """Rates of a bare gamma, for hand checks."""
    return PteRates(name, name, "exact", "given", "", (LayerGroup(gamma),), growth=growth)


def reads(start: int, count: int, window: int | None = None) -> float:
    """Sum of `min(start + t, window)` for t from 0 to count - 1: the tokens that `count`
    successive positions see, the first after `start` tokens.

    Example:
        >>> reads(10, 3), reads(10, 3, 11), reads(10, 3, 4)
        (33.0, 32.0, 12.0)
    """
    if count <= 0:
        return 0.0
    if window is None:
        return count * start + count * (count - 1) / 2
    growing = min(count, max(0, window - start))
    return growing * start + growing * (growing - 1) / 2 + float((count - growing) * window)


class Turn(NamedTuple):
    """One model call, in tokens.

    Attributes:
        context_tokens: L, the whole prompt, cached part included.
        decode_tokens: D, everything generated: thinking, text and tool calls.
        cached_tokens: C as reported; None is unknown, never zero.
        new_segment: the call does not continue the one before it (compaction, an edited history,
            a sub-agent): nothing can have been kept for it.
        tool_tokens: tokens of tool answers within the context.
        new_tool_tokens: those of them that are new in this turn.
        dropped_tokens: decoded tokens that are in no later context (thinking that the server
            drops, an answer that was refused): no cache can keep them for the next call.
    """

    context_tokens: int
    decode_tokens: int
    cached_tokens: int | None = None
    new_segment: bool = False
    tool_tokens: int = 0
    new_tool_tokens: int = 0
    dropped_tokens: int = 0


@dataclass(frozen=True, slots=True)
class TurnCost:
    """What a turn cost, three ways and by cause.

    Attributes:
        full: every pause evicted (the paper's assumption).
        measured: with the reported cached tokens; None when they are unknown.
        ideal: with the previous prompt and answer kept.
        prompt: first prefill of what is neither a tool answer nor seen before.
        tool_answers: first prefill of tool answers, and the KV reads of all tool answers carried.
        re_prefill: prefill of tokens that an unbroken cache would still have held.
        reasoning: the model's own tokens: weight reads and reads within the turn.
        context_reads: decode surcharge of a long context, tool answers apart.
        lost_tokens: tokens that an unbroken cache would have held and this call did not find;
            None when unknown.
        kept_tokens: what an unbroken cache would have held.

    The five causes add up to `value`.
    """

    full: float
    measured: float | None
    ideal: float
    prompt: float
    tool_answers: float
    re_prefill: float
    reasoning: float
    context_reads: float
    lost_tokens: int | None
    kept_tokens: int

    @property
    def value(self) -> float:
        """Measured where cached tokens are known, otherwise the upper end, `full`."""
        return self.full if self.measured is None else self.measured


def price(rates: PteRates, turns: Iterable[Turn]) -> list[TurnCost]:
    """The cost of each turn of a trajectory, in order. With `cache_counts` off (paper mode)
    `measured` equals `full`: the paper knows no reuse.

    Example:
        >>> costs = price(plain(0.002), [Turn(1000, 100, 0), Turn(3000, 50, 1024)])
        >>> [sum(c.full for c in costs), sum(c.value for c in costs), sum(c.ideal for c in costs)]
        [4500.0, 3476.0, 3400.0]
    """
    costs: list[TurnCost] = []
    before = 0
    for turn in turns:
        context, decoded, reported, new_segment, tool_tokens, new_tool_tokens, dropped = turn
        kept = 0 if new_segment else min(context, before)
        cached = reported if rates.cache_counts else 0
        held = 0 if cached is None else min(cached, context)
        kv, own = rates.decode_parts(context, decoded)
        full_prefill = rates.prefill(context)
        ideal_prefill = rates.prefill(context, kept) if kept else full_prefill
        prefill = rates.prefill(context, held) if held else full_prefill
        # A first call may find more than this trajectory left (a prefix shared with others):
        # then nothing was lost and the new part is smaller.
        re_prefill = max(0.0, prefill - ideal_prefill)
        first = prefill - re_prefill
        fresh = context - max(kept, held)
        tool_share = min(1.0, new_tool_tokens / fresh) if fresh > 0 else 0.0
        carried = kv * min(1.0, tool_tokens / context) if context else 0.0
        costs.append(
            TurnCost(
                full=full_prefill + kv + own,
                measured=None if cached is None else prefill + kv + own,
                ideal=ideal_prefill + kv + own,
                prompt=first * (1.0 - tool_share),
                tool_answers=first * tool_share + carried,
                re_prefill=re_prefill,
                reasoning=own,
                context_reads=kv - carried,
                lost_tokens=None if reported is None else max(0, kept - min(reported, context)),
                kept_tokens=kept,
            )
        )
        before = context + decoded - dropped
    return costs


def value_of(rates: PteRates, turns: Iterable[Turn]) -> float:
    """The sum of the turns' values, without their breakdown.

    Example:
        >>> value_of(plain(0.002), [Turn(1000, 100, 0), Turn(3000, 50, 1024)])
        3476.0
    """
    value = 0.0
    for turn in turns:
        cached = turn.cached_tokens if rates.cache_counts else 0
        held = 0 if cached is None else min(cached, turn.context_tokens)
        value += rates.turn(turn.context_tokens, turn.decode_tokens, held)
    return value


def carry_cost(
    rates: PteRates, tokens: float, turns: Sequence[Turn], costs: Sequence[TurnCost], entered: int
) -> float:
    """PTE that `tokens` of context cost from turn `entered`, where they were new, to the end of
    their segment: prefilled unless it was cached, prefilled again at each loss in proportion, and
    read by every decoded token: `tokens * sum(uncached share + gamma * D)`."""
    total = 0.0
    for place in range(entered, len(turns)):
        turn, cost = turns[place], costs[place]
        if place > entered and turn.new_segment:
            break
        if not turn.context_tokens:
            continue
        share = min(1.0, tokens / turn.context_tokens)
        total += share * rates.kv_reads(turn.context_tokens, turn.decode_tokens)
        if place == entered:
            total += tokens * fresh_share(rates, turn, cost)
        elif cost.kept_tokens:
            total += min(1.0, tokens / cost.kept_tokens) * cost.re_prefill
    return total


def fresh_share(rates: PteRates, turn: Turn, cost: TurnCost) -> float:
    """Of the tokens that are new to a turn's context, the share that was prefilled: a prefix that
    another trajectory left in the cache is new to this one, and not prefilled."""
    new = turn.context_tokens - cost.kept_tokens
    if new <= 0 or turn.cached_tokens is None or not rates.cache_counts:
        return 1.0
    held = min(turn.cached_tokens, turn.context_tokens)
    return (turn.context_tokens - max(cost.kept_tokens, held)) / new


@dataclass(slots=True)
class PteTotals:
    """Sums over turns. `measured` is None once a turn's cached tokens are unknown, and then the
    truth lies between `ideal` and `full`."""

    turns: int = 0
    full: float = 0.0
    measured: float | None = 0.0
    ideal: float = 0.0
    prompt: float = 0.0
    tool_answers: float = 0.0
    re_prefill: float = 0.0
    reasoning: float = 0.0
    context_reads: float = 0.0

    @property
    def value(self) -> float:
        """Sum of the turns' values: measured where known, full where not."""
        return (
            self.prompt + self.tool_answers + self.re_prefill + self.reasoning + self.context_reads
        )

    def add(self, cost: TurnCost) -> None:
        """Count a turn."""
        self.turns += 1
        self.full += cost.full
        self.ideal += cost.ideal
        if self.measured is not None:
            self.measured = None if cost.measured is None else self.measured + cost.measured
        self.prompt += cost.prompt
        self.tool_answers += cost.tool_answers
        self.re_prefill += cost.re_prefill
        self.reasoning += cost.reasoning
        self.context_reads += cost.context_reads

    def merge(self, other: PteTotals) -> None:
        """Count the turns of another sum."""
        self.turns += other.turns
        self.full += other.full
        self.ideal += other.ideal
        if self.measured is not None:
            self.measured = None if other.measured is None else self.measured + other.measured
        self.prompt += other.prompt
        self.tool_answers += other.tool_answers
        self.re_prefill += other.re_prefill
        self.reasoning += other.reasoning
        self.context_reads += other.context_reads


def total(costs: Iterable[TurnCost]) -> PteTotals:
    """The sum of `costs`."""
    totals = PteTotals()
    for cost in costs:
        totals.add(cost)
    return totals


def ideal_turns(turns: Iterable[Turn]) -> list[Turn]:
    """The same turns with everything kept that could be: what-if of perfect cache reuse."""
    changed: list[Turn] = []
    before = 0
    for turn in turns:
        kept = 0 if turn.new_segment else min(turn.context_tokens, before)
        held = max(kept, turn.cached_tokens or 0)
        held = min(turn.context_tokens, held)
        changed.append(
            Turn(
                turn.context_tokens,
                turn.decode_tokens,
                held,
                turn.new_segment,
                turn.tool_tokens,
                turn.new_tool_tokens,
                turn.dropped_tokens,
            )
        )
        before = turn.context_tokens + turn.decode_tokens - turn.dropped_tokens
    return changed
