"""The operators that make calls, as steps: Generate, Choose, Tool, Sql; and the compiler that turns
the operators of a plan, of whatever kind, into scopes."""

from __future__ import annotations

from asyncio import Future
from collections.abc import Callable, Mapping, Sequence

from costmodel.usage import OpMetrics
from planner.errors import InvariantError
from planner.logical import (
    Agent,
    Body,
    Choose,
    Filter,
    Generate,
    Json,
    Limit,
    Loop,
    Map,
    Op,
    Prompt,
    Reduce,
    Relation,
    Sql,
    Tool,
    When,
)
from runtime.agent_loop import AgentStep, ToolCaller
from runtime.answers import Asker, JsonType, MisfitError, Options, answer_text, typed_answer
from runtime.backends.base import Message, Request, ToolSchema
from runtime.dispatch import Dispatcher
from runtime.errors import ValueTypeError
from runtime.evaluator import Evaluator
from runtime.inline import Compute, compile_inline, compile_opening, compile_prompt
from runtime.nested import LoopStep, MapStep, ReduceStep, WhenStep
from runtime.placement import Placement
from runtime.records import CallRecord, CallSite
from runtime.scope import CallStep, Frame, Scope, Step
from runtime.sinks import LimitState, LimitStep, Sink, compile_filter, compile_sink
from runtime.streaming import OpenCall, PromptOpener, growing
from runtime.values import checked, copied, kind_of


class ModelStep(CallStep):
    """A `Generate` or `Choose`. Free text is taken as it is, cut or not; typed answers are checked
    and asked for once more when they do not fit."""

    def __init__(
        self,
        op: Generate | Choose,
        inputs: Sequence[int],
        placement: Placement,
        asker: Asker,
    ) -> None:
        self.op = op
        self._inputs = tuple(inputs)
        self._prompt = compile_prompt(op.prompt, inputs)
        self._system = compile_prompt(op.system, inputs) if op.system is not None else None
        self._model = placement.worker_of(op).model
        self._placement = placement
        self._asker = asker
        self._effect = op.effect
        self._stop = op.stop if isinstance(op, Generate) else ()
        self._schema_json = op.schema_json if isinstance(op, Generate) else None
        self._options = op.options if isinstance(op, Choose) else ()
        self._answer_type: JsonType | Options | None = None
        if self._options:
            self._answer_type = Options(self._options)
        elif self._schema_json is not None:
            self._answer_type = JsonType(self._schema_json)

    def begin(self, frame: Frame, query: str) -> Future[CallRecord]:
        if isinstance(self._answer_type, JsonType):
            self._answer_type.ensure_sound()
        request = self._request(frame, self._prompt(frame.values))
        site, priority = self._site(frame, query), self._priority(frame)
        early = self._early(frame)
        worker = self._worker(frame) if early is None else early.worker
        return self._asker.models.begin(worker, request, site, priority=priority, early=early)

    def value(self, record: CallRecord) -> Json:
        if self._answer_type is None:
            return answer_text(record)
        return typed_answer(record, self.op.max_tokens, self._answer_type)

    async def again(
        self, frame: Frame, query: str, record: CallRecord, misfit: MisfitError
    ) -> Json:
        assert self._answer_type is not None
        request = self._request(frame, self._prompt(frame.values))
        site, priority = self._site(frame, query), self._priority(frame)
        return await self._asker.ask_again(
            self._worker(frame), request, site, priority, self._answer_type, record, str(misfit)
        )

    def opening(self, frame: Frame, position: int) -> str | None:
        """See `runtime.streaming.GrowingStep`. A choice is scored, which needs a whole prompt."""
        op = self.op
        if self._options or not self._reads(op.prompt, position):
            return None
        if op.system is not None and self._reads(op.system, position):
            return None
        return compile_opening(op.prompt, self._inputs, position)(frame.values)

    def open(self, frame: Frame, query: str, text: str, opener: PromptOpener) -> OpenCall | None:
        """See `runtime.streaming.GrowingStep`."""
        request, site = self._request(frame, text), self._site(frame, query)
        return opener.open(self._worker(frame), request, site, priority=self._priority(frame))

    def _reads(self, prompt: Prompt, position: int) -> bool:
        return any(self._inputs[i] == position for i in prompt.references)

    def _early(self, frame: Frame) -> OpenCall | None:
        """The call's prompt, if it is open already."""
        return frame.early.get(frame.scope.position_of(self.op)) if frame.early else None

    def _request(self, frame: Frame, text: str) -> Request:
        op, user = self.op, Message("user", text)
        system = None if self._system is None else Message("system", self._system(frame.values))
        return Request(
            "",
            self._model,
            (user,) if system is None else (system, user),
            op.max_tokens,
            op.temperature,
            op.top_p,
            None,
            self._stop,
            self._schema_json,
            self._options,
        )

    def _site(self, frame: Frame, query: str) -> CallSite:
        return frame.site(self.op, query, effect=self._effect, call_id=self.op.call_id)

    def _priority(self, frame: Frame) -> int:
        return frame.row.priority + self._placement.priority(self.op.fingerprint)

    def _worker(self, frame: Frame) -> str:
        return self._placement.worker(self.op.fingerprint, frame.row.position)


class ToolStep:
    """A `Tool`. Arguments are copies: what a tool does to them reaches no other row."""

    def __init__(
        self, op: Tool, inputs: Sequence[int], tools: ToolCaller, opener: PromptOpener | None
    ) -> None:
        self.op = op
        self._opener = opener
        self._arguments = tuple(zip(op.params, inputs, strict=True))
        self._tools = tools

    async def run(self, frame: Frame, query: str) -> Json:
        op, values = self.op, frame.values
        arguments = {name: copied(values[i]) for name, i in self._arguments}
        site = frame.site(op, query, effect=op.effect, call_id=op.call_id)
        with growing(frame, op, self._opener) as listener:
            record = await self._tools.call(op.tool.name, arguments, site, listener)
        return checked(record.value, f"the answer of tool {op.tool.name!r}")


class SqlStep:
    """A `Sql`: its own text, or a text from the first input."""

    def __init__(
        self, op: Sql, inputs: Sequence[int], tools: ToolCaller, opener: PromptOpener | None
    ) -> None:
        self.op = op
        self._opener = opener
        self._text_at = inputs[0] if op.text is None else None
        params = inputs if op.text is not None else inputs[1:]
        self._params = tuple(zip(op.params, params, strict=True))
        self._tools = tools

    async def run(self, frame: Frame, query: str) -> Json:
        op, values = self.op, frame.values
        text: Json = op.text if self._text_at is None else values[self._text_at]
        if not isinstance(text, str):
            raise ValueTypeError(f"{op!r} needs a query text, got {kind_of(text)}")
        site = frame.site(op, query, effect=op.effect, call_id=op.call_id)
        params = {name: values[i] for name, i in self._params}
        with growing(frame, op, self._opener) as listener:
            record = await self._tools.query(op, text, params, site, listener)
        return checked(record.value, f"the answer of {op!r}")


class Compiler:
    """Compiles the scopes of one run. Equal bodies are compiled once."""

    def __init__(
        self,
        placement: Placement,
        *,
        models: Dispatcher,
        tools: ToolCaller,
        tool_schemas: Mapping[str, ToolSchema],
        metrics: dict[str, OpMetrics],
        evaluator: Evaluator,
        is_stopping: Callable[[], bool],
        opener: PromptOpener | None = None,
    ) -> None:
        """`opener` opens prompts before they are whole, where an engine takes them so."""
        self._placement = placement
        self._opener = opener
        self._tools = tools
        self._tool_schemas = tool_schemas
        self._metrics = metrics
        self._evaluator = evaluator
        self._is_stopping = is_stopping
        self._asker = Asker(models, metrics)
        self._bodies: dict[str, Scope] = {}
        self._limits: dict[str, LimitState] = {}

    def row_scope(self, roots: Sequence[Op], queries: Mapping[Op, str], base: Relation) -> Scope:
        """The scope of the rows of `base` with the given roots; `queries` says under which query
        each operator's calls are recorded."""
        return Scope(roots, self._compile, queries, base)

    def limit(self, op: Limit) -> LimitState:
        """Where a limit of the run stands: the same in every scope."""
        return self._limits.setdefault(op.fingerprint, LimitState(op))

    def _body(self, body: Body) -> Scope:
        scope = self._bodies.get(body.fingerprint)
        if scope is None:
            scope = self._bodies[body.fingerprint] = Scope((body.result,), self._compile)
        return scope

    def _compile(self, op: Op, inputs: Sequence[int]) -> Compute | Step | CallStep:
        if isinstance(op, Filter):
            return compile_filter(op, inputs, self._metrics)
        if isinstance(op, Limit):
            return LimitStep(op, self.limit(op))
        if isinstance(op, Sink):
            return compile_sink(op, inputs)
        function = compile_inline(op, inputs)
        return function if function is not None else self._step(op, inputs)

    def _step(self, op: Op, inputs: Sequence[int]) -> Step | CallStep:
        bodies = [self._body(body) for body in op.bodies]
        match op:
            case Generate() | Choose():
                return ModelStep(op, inputs, self._placement, self._asker)
            case Agent():
                return AgentStep(
                    op,
                    inputs,
                    self._placement,
                    self._asker,
                    self._tools,
                    self._tool_schemas,
                    self._is_stopping,
                )
            case Tool():
                return ToolStep(op, inputs, self._tools, self._opener)
            case Sql():
                return SqlStep(op, inputs, self._tools, self._opener)
            case Map():
                return MapStep(op, inputs, bodies, self._evaluator, self._metrics)
            case Reduce():
                return ReduceStep(op, inputs, bodies, self._evaluator, self._metrics)
            case When():
                return WhenStep(op, inputs, bodies, self._evaluator, self._metrics)
            case Loop():
                return LoopStep(op, inputs, bodies, self._evaluator, self._metrics)
            case _:
                raise InvariantError(f"the executor does not know operators of kind {op.kind}")
