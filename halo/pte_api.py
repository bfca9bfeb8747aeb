"""`halo.pte`: what one conversation costs in prefill token equivalents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from costmodel.pte import Mode, TurnCost
from costmodel.pte_exact import DEFAULT_BATCH, ExactTerms
from costmodel.pte_profiles import PeakKind, Pricing
from halo.errors import InputError
from halo.trace_report.analyze import Analysis, Analyzer
from halo.trace_report.finding import Finding
from halo.trace_report.rates_book import RatesBook
from halo.trace_report.text import number
from halo.traces.anthropic_messages import conversation_of as anthropic_conversation
from halo.traces.build import settle_cached_tokens
from halo.traces.counting import BYTES, load_tokenizer
from halo.traces.json_shapes import as_dict, as_list
from halo.traces.openai_chat import conversation as openai_conversation
from halo.traces.record import Trace

_ANTHROPIC_BLOCKS = ("tool_use", "tool_result", "thinking")


@dataclass(frozen=True)
class PteOfTrace:
    """The price of one conversation.

    Attributes:
        value: measured where cached tokens are known, otherwise the upper end, `full`.
        full: as if every tool pause evicted the cache.
        measured: with the reported cached tokens; None when some are unknown.
        ideal: as if nothing were evicted.
        turns: the cost of each model call.
        causes: `value` by cause: prompt, tool_answers, re_prefill, reasoning, context_reads.
        findings: patterns of waste, by name, with their evidence.
        unknown: patterns that the messages do not show enough for, and why.
        notes: what had to be assumed.
    """

    value: float
    full: float
    measured: float | None
    ideal: float
    turns: tuple[TurnCost, ...]
    causes: Mapping[str, float]
    findings: Mapping[str, tuple[Finding, ...]]
    unknown: Mapping[str, str]
    model: str
    hardware: str
    gamma: float
    notes: tuple[str, ...]

    def explain(self) -> str:
        """The price in a few lines, for people and for failing tests."""
        lines = [
            f"{number(self.value)} PTE in {len(self.turns)} calls, priced as {self.model} on "
            f"{self.hardware} (ideal {number(self.ideal)}, full {number(self.full)})"
        ]
        lines += [
            f"  {name.replace('_', ' ')}: {number(cost)}" for name, cost in self.causes.items()
        ]
        dearest = max(range(len(self.turns)), key=lambda i: self.turns[i].value, default=None)
        if dearest is not None:
            lines.append(f"  dearest call: {dearest + 1}, {number(self.turns[dearest].value)} PTE")
        for name, findings in self.findings.items():
            for finding in findings[:3]:
                lines.append(
                    f"  {name.replace('_', ' ')} at call {finding.turn + 1}: {finding.why}"
                )
        return "\n".join(lines)


def pte(
    messages: Sequence[Mapping[str, Any]] | Mapping[str, Any],
    *,
    model: str | Path,
    hardware: str | Path | None = None,
    mode: Mode = "exact",
    tools: Sequence[Mapping[str, Any]] | None = None,
    usage: Sequence[Mapping[str, Any]] | None = None,
    batch: float | None = DEFAULT_BATCH,
    peak: PeakKind = "dense",
    tokenizer: Path | None = None,
) -> PteOfTrace:
    """What a conversation costs in prefill token equivalents.

    `messages` are OpenAI chat or Anthropic messages, or an object with them under `messages`
    (then `tools` and `usage` may be in it too). `model` is the name of a profile or the path of a
    config.json; `usage` has one usage object per assistant message. Tokens that it does not tell
    are counted with `tokenizer`, or estimated from bytes. `batch` sequences share weight reads;
    None leaves those out.

    Raises `InputError` when there is no model call in it, `ProfileError` for an unknown model or
    device, with the nearest names.

    Example:
        >>> cost = pte(
        ...     [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}],
        ...     model="llama-3.1-8b",
        ...     usage=[{"prompt_tokens": 4000, "completion_tokens": 200}],
        ...     mode="paper",
        ... )
        >>> cost.value
        9000.0
    """
    pricing = Pricing(
        mode, None if hardware is None else str(hardware), peak, ExactTerms(batch=batch)
    )
    book = RatesBook(pricing, str(model))
    book.check()
    counter = load_tokenizer(tokenizer) if tokenizer is not None else BYTES
    trace = trace_of(messages, tools=tools, usage=usage)
    if not trace.turns:
        raise InputError("the messages have no assistant message: no model call to price")
    analysis = Analyzer(book, counter).analyze(trace)
    return _result(analysis)


def trace_of(
    messages: Sequence[Mapping[str, Any]] | Mapping[str, Any],
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    usage: Sequence[Mapping[str, Any]] | None = None,
) -> Trace:
    """The trace of messages in memory, OpenAI's or Anthropic's."""
    fields: dict[str, Any]
    fields = dict(messages) if isinstance(messages, Mapping) else {"messages": list(messages)}
    if tools is not None:
        fields["tools"] = list(tools)
    if usage is not None:
        fields["usage"] = list(usage)
    fields.setdefault("id", "messages")
    read = anthropic_conversation if _is_anthropic(fields) else openai_conversation
    trace = read(fields, "messages")
    settle_cached_tokens(trace)
    return trace


def _is_anthropic(fields: dict[str, Any]) -> bool:
    if isinstance(fields.get("system"), str | list):
        return True
    return any(
        as_dict(part).get("type") in _ANTHROPIC_BLOCKS
        for message in as_list(fields.get("messages"))
        for part in as_list(as_dict(message).get("content"))
    )


def _result(analysis: Analysis) -> PteOfTrace:
    view, totals = analysis.view, analysis.view.totals
    return PteOfTrace(
        value=totals.value,
        full=totals.full,
        measured=totals.measured,
        ideal=totals.ideal,
        turns=tuple(view.costs),
        causes={
            "prompt": totals.prompt,
            "tool_answers": totals.tool_answers,
            "re_prefill": totals.re_prefill,
            "reasoning": totals.reasoning,
            "context_reads": totals.context_reads,
        },
        findings={
            name: verdict.findings
            for name, verdict in analysis.verdicts.items()
            if verdict.status == "fired"
        },
        unknown={
            name: verdict.reason
            for name, verdict in analysis.verdicts.items()
            if verdict.status == "unknown"
        },
        model=view.rates.model,
        hardware=view.rates.hardware,
        gamma=view.rates.gamma,
        notes=tuple(view.trace.notes),
    )
