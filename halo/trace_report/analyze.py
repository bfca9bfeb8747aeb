"""One trace analysed: its prices, tools, patterns and what-if, as plain values."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from costmodel.pte import PteRates
from halo.trace_report.finding import DEFAULT_THRESHOLDS, Thresholds, Verdict
from halo.trace_report.patterns.all_rules import judge
from halo.trace_report.rates_book import RatesBook
from halo.trace_report.view import View
from halo.trace_report.what_if import Scenarios, outcomes
from halo.traces.counting import BYTES, Counter, fill_tokens
from halo.traces.record import Message, Trace

_TEXT_CHARACTERS = 4000
_PREFIX_MESSAGES = 4


@dataclass
class Analyzer:
    """What every trace is analysed with."""

    book: RatesBook
    counter: Counter = BYTES
    thresholds: Thresholds = DEFAULT_THRESHOLDS
    scenarios: Scenarios = field(default_factory=Scenarios)
    hardware_book: RatesBook | None = None
    model_book: RatesBook | None = None

    def view(self, trace: Trace) -> View:
        """A trace with its tokens filled in and its prices."""
        fill_tokens(trace, self.counter)
        rates = self.book.rates(trace.model)
        for model in {turn.model for turn in trace.turns} - {"", trace.model}:
            if self.book.rates(model).model != rates.model:
                trace.note(f"calls of {cut(model, 80)} are priced as {rates.model}, like the trace")
        return View(trace, rates)

    def analyze(self, trace: Trace) -> Analysis:
        """A trace's analysis."""
        view = self.view(trace)
        verdicts = judge(view, self.thresholds)
        hardware = self.hardware_book.rates(trace.model) if self.hardware_book else None
        model = self.model_book.rates(trace.model) if self.model_book else None
        return Analysis(
            view, verdicts, outcomes(view, self.scenarios, hardware, model), tools_of(view)
        )


@dataclass
class ToolUse:
    """What one tool's calls of a trace cost: answers prefilled and carried to the end.

    `seconds` sums the times that are known; `timed` counts them.
    """

    calls: int = 0
    errors: int = 0
    answer_tokens: float = 0.0
    pte: float = 0.0
    seconds: float = 0.0
    timed: int = 0


@dataclass
class Analysis:
    """A view with everything derived from it."""

    view: View
    verdicts: Mapping[str, Verdict]
    what_if: Mapping[str, float]
    tools: Mapping[str, ToolUse]

    def row(self) -> dict[str, Any]:
        """The trace as one line of a table."""
        view, trace, totals = self.view, self.view.trace, self.view.totals
        cached = [turn.cached_tokens for turn in view.turns]
        known = [each for each in cached if each is not None]
        return {
            "id": trace.id,
            "place": trace.place,
            "format": trace.format,
            "model": trace.model,
            "priced_as": view.rates.model,
            "passed": trace.passed,
            "score": trace.score,
            "turns": len(view.turns),
            "tool_calls": len(view.calls),
            "prompt_tokens": sum(turn.context_tokens for turn in view.turns),
            "completion_tokens": sum(turn.decode_tokens for turn in view.turns),
            "cached_tokens": sum(known) if len(known) == len(cached) else None,
            "peak_context_tokens": max((turn.context_tokens for turn in view.turns), default=0),
            "pte": totals.value,
            "pte_full": totals.full,
            "pte_measured": totals.measured,
            "pte_ideal": totals.ideal,
            "pte_prompt": totals.prompt,
            "pte_tool_answers": totals.tool_answers,
            "pte_re_prefill": totals.re_prefill,
            "pte_reasoning": totals.reasoning,
            "pte_context_reads": totals.context_reads,
            "patterns": [name for name, v in self.verdicts.items() if v.status == "fired"],
            "wasted_pte": wasted(self.verdicts, totals.value),
        }

    def details(self) -> dict[str, Any]:
        """The trace turn by turn, with its texts cut to a readable length."""
        view = self.view
        turns: list[dict[str, Any]] = []
        for place, (turn, priced, cost) in enumerate(
            zip(view.trace.turns, view.turns, view.costs, strict=True)
        ):
            turns.append(
                {
                    "context_tokens": priced.context_tokens,
                    "decode_tokens": priced.decode_tokens,
                    "cached_tokens": priced.cached_tokens,
                    "lost_tokens": cost.lost_tokens,
                    "new_segment": priced.new_segment,
                    "thread": turn.thread,
                    "prompt_origin": turn.prompt_origin,
                    "completion_origin": turn.completion_origin,
                    "seconds": _seconds(turn.start_s, turn.end_s),
                    "pte": cost.value,
                    "pte_full": cost.full,
                    "pte_ideal": cost.ideal,
                    "causes": {
                        "prompt": cost.prompt,
                        "tool_answers": cost.tool_answers,
                        "re_prefill": cost.re_prefill,
                        "reasoning": cost.reasoning,
                        "context_reads": cost.context_reads,
                    },
                    "inputs": [
                        _message(each, view.carry(each.tokens, place)) for each in turn.inputs
                    ],
                    "output": _message(turn.output, None),
                }
            )
        return {
            **self.row(),
            "expected": cut(view.trace.expected, 300),
            "notes": view.trace.notes,
            "turn_list": turns,
            "trailing": [_message(each, None) for each in view.trace.trailing],
            "findings": findings_of(self.verdicts),
            "unknown": {n: v.reason for n, v in self.verdicts.items() if v.status == "unknown"},
            "what_if": dict(self.what_if),
        }


def wasted(verdicts: Mapping[str, Verdict], most: float) -> float:
    """PTE of all findings; findings may overlap, so never more than the trace itself."""
    return min(most, sum(verdict.pte for verdict in verdicts.values()))


def findings_of(verdicts: Mapping[str, Verdict]) -> list[dict[str, Any]]:
    """Every finding with its pattern, dearest first."""
    found = [
        {
            "pattern": name,
            "turn": finding.turn,
            "where": finding.where,
            "start": finding.start,
            "end": finding.end,
            "quote": finding.quote,
            "confidence": finding.confidence,
            "pte": finding.pte,
            "label": finding.label,
            "why": finding.why,
        }
        for name, verdict in verdicts.items()
        for finding in verdict.findings
    ]
    return sorted(found, key=lambda each: -each["pte"])


def tools_of(view: View) -> dict[str, ToolUse]:
    """What each tool's answers cost."""
    found: dict[str, ToolUse] = {}
    for each in view.calls:
        use = found.setdefault(each.name or "(unnamed)", ToolUse())
        use.calls += 1
        answer = each.answer
        if answer is None:
            continue
        use.answer_tokens += answer.tokens
        use.errors += view.is_failure(answer)
        use.pte += view.carry(answer.tokens, each.answer_turn)
        if answer.seconds is not None:
            use.seconds += answer.seconds
            use.timed += 1
    return found


def prefix_chain(view: View) -> list[tuple[str, float]]:
    """(name, tokens) of the leading messages of a trace; equal names mean equal beginnings, so that
    a batch can charge what its traces share once."""
    chain: list[tuple[str, float]] = []
    if not view.trace.has_content or not view.trace.turns:
        return chain
    name = hashlib.sha256(view.rates.model.encode())
    tools = view.trace.tools
    tool_part = ""
    if tools:
        tool_part = json.dumps([[tool.name, tool.description, tool.schema] for tool in tools])
    name.update(tool_part.encode("utf-8", "replace"))
    first = view.turns[0].context_tokens
    counted = sum(message.tokens for message in view.trace.turns[0].inputs)
    if tool_part and first > counted:
        chain.append((name.hexdigest()[:16], first - counted))
    for message in view.trace.turns[0].inputs[:_PREFIX_MESSAGES]:
        name.update(f"\0{message.role}\0{message.text}".encode("utf-8", "replace"))
        chain.append((name.hexdigest()[:16], message.tokens))
    return chain


def cut(text: str, limit: int = _TEXT_CHARACTERS) -> str:
    """`text`, with its middle left out when it is longer than `limit` characters."""
    if len(text) <= limit:
        return text
    half = limit // 2
    return f"{text[:half]}\n[… {len(text) - 2 * half:,} characters left out …]\n{text[-half:]}"


def _message(message: Message, carried: float | None) -> dict[str, Any]:
    found: dict[str, Any] = {
        "role": message.role,
        "text": cut(message.text),
        "tokens": round(message.tokens),
    }
    if message.reasoning:
        found["reasoning"] = cut(message.reasoning)
    if message.reasoning_hidden:
        found["reasoning_hidden"] = True
    if message.calls:
        found["calls"] = [
            {
                "id": call.id,
                "name": call.name,
                "arguments": cut(call.arguments_text or _shown(call.arguments), 2000),
                "problem": call.problem,
            }
            for call in message.calls
        ]
    if message.role == "tool":
        found["name"] = message.tool_name
        found["call_id"] = message.call_id
        found["is_error"] = message.is_error
        found["exit_code"] = message.exit_code
        found["seconds"] = message.seconds
    if carried is not None:
        found["carried_pte"] = carried
    return found


def _shown(arguments: Any) -> str:
    return "" if arguments is None else json.dumps(arguments, ensure_ascii=False)


def _seconds(start: float | None, end: float | None) -> float | None:
    return end - start if start is not None and end is not None and end >= start else None


def rates_document(rates: PteRates) -> dict[str, Any]:
    """Prices, as a report's header shows them."""
    return {
        "model": rates.model,
        "hardware": rates.hardware,
        "mode": rates.mode,
        "gamma": rates.gamma,
        "peak": rates.peak,
        "evidence": rates.evidence,
        "batch": rates.batch,
        "decode_token": rates.decode_token,
        "growth": rates.growth,
        "attention": any(group.attention for group in rates.groups),
    }
