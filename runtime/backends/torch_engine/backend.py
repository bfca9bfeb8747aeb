"""The torch engine behind Halo's seam (extra `torch`)."""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from costmodel.usage import Usage
from runtime.backends.base import Backend, Capabilities, Completion, Request, ToolCall
from runtime.backends.torch_engine.errors import ENGINE, RequestRefusedError
from runtime.backends.torch_engine.settings import (
    ModelFacts,
    TorchOptions,
    cache_tokens,
    capabilities,
    read_facts,
    usable_cores,
)
from runtime.backends.torch_engine.techniques import with_attention
from runtime.clock import Clock
from runtime.errors import BackendError
from runtime.models.tool_calls import split_tool_calls

if TYPE_CHECKING:
    from runtime.backends.create import EngineOptions
    from runtime.backends.torch_engine.engine import Engine, StepMetrics
    from runtime.backends.torch_engine.grammar import GrammarCompiler
    from runtime.backends.torch_engine.loading import LoadedModel
    from runtime.backends.torch_engine.sequence import GenerationRequest, Result
    from runtime.backends.torch_engine.session import PromptSession

NAME = ENGINE


def describe(
    model: str,
    models_dir: Path | None = None,
    *,
    max_in_flight: int | None = None,
    exact: bool = False,
) -> Capabilities:
    """What the engine will offer with `model`, which need not have been fetched yet. Raises
    `BackendError`."""
    return capabilities(read_facts(model, models_dir), max_in_flight, deterministic=exact)


async def open_backend(
    model: str, clock: Clock, options: EngineOptions, torch_options: TorchOptions | None = None
) -> TorchBackend:
    """The engine with `model` loaded; a model of the catalogue is fetched first when it is missing.
    Raises `BackendError`."""
    for package in ("torch", "safetensors", "tokenizers", "llguidance", "gguf"):
        if importlib.util.find_spec(package) is None:
            raise BackendError(
                f"the torch engine needs {package}: pip install 'halo-flow[torch]'", backend=NAME
            )
    torch_options = torch_options or TorchOptions()
    with clock.outside():
        loaded, note = await asyncio.to_thread(_load, model, options, torch_options)
    n_layers = loaded.model.shape.n_layers
    torch_options = with_attention(torch_options, options.attention, Path(model).name, n_layers)
    facts = read_facts(model, options.models_dir)
    return TorchBackend(loaded, facts, clock, options, torch_options, note)


def _load(
    model: str, options: EngineOptions, torch_options: TorchOptions
) -> tuple[LoadedModel, str]:
    import torch

    from runtime.backends.torch_engine.linear import (
        PRECISIONS,
        default_precision,
        resolve_precision,
    )
    from runtime.backends.torch_engine.loading import find_model, load_model

    # One setting of the whole process: torch has no other. All cores unless told otherwise.
    torch.set_num_threads(options.threads or usable_cores())
    name = torch_options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    asked = torch_options.precision or options.precision
    if asked is None:
        asked = "float32" if options.exact else default_precision(device)
    if asked not in PRECISIONS:
        raise BackendError(
            f"precision {asked!r}; the torch engine has {', '.join(PRECISIONS)}", backend=NAME
        )
    precision, note = resolve_precision(asked, device)
    path = find_model(model, options.models_dir, announce=lambda _: None)
    wants_swiftkv = torch_options.swiftkv is not None or options.attention.startswith("swiftkv")
    return load_model(path, precision, device, keep_projections=wants_swiftkv), note


class TorchBackend(Backend):
    """One model in this process, driven by a thread of its own."""

    def __init__(
        self,
        loaded: LoadedModel,
        facts: ModelFacts,
        clock: Clock,
        options: EngineOptions,
        torch_options: TorchOptions,
        note: str = "",
    ) -> None:
        from runtime.backends.torch_engine.engine import Engine, EngineConfig
        from runtime.backends.torch_engine.scheduler import SchedulerConfig
        from runtime.backends.torch_engine.sequence import TokenSelection
        from runtime.backends.torch_engine.token_sets import SwiftKV
        from runtime.backends.torch_engine.worker import EngineThread

        self.name = NAME
        self.note = note
        self.tokenizer = loaded.tokenizer
        self._clock = clock
        self._capabilities = capabilities(
            facts,
            options.max_in_flight,
            deterministic=options.exact,
            open_prompts=torch_options.layer_groups is None,
        )
        n_layers = loaded.model.shape.n_layers
        self._selection: TokenSelection | None = None
        if torch_options.selection is not None:
            layer, rate, retain = torch_options.selection
            middle = n_layers // 2 - 1
            self._selection = TokenSelection(middle if layer is None else layer, rate, retain)
        defaults = SchedulerConfig()
        config = EngineConfig(
            max_kv_tokens=torch_options.max_kv_tokens or cache_tokens(facts),
            scheduler=SchedulerConfig(
                max_step_tokens=torch_options.max_step_tokens or defaults.max_step_tokens,
                chunk_tokens=torch_options.chunk_tokens,
                max_running=self._capabilities.max_in_flight,
                layer_groups=torch_options.layer_groups,
            ),
            cascade=torch_options.cascade,
            swiftkv=SwiftKV(*torch_options.swiftkv) if torch_options.swiftkv else None,
        )
        loop = asyncio.get_running_loop()
        self._engine = Engine(
            loaded.model,
            loop.time,
            config,
            text_stream=loaded.tokenizer.stream,
            on_step=self._on_step,
        )
        self.on_metrics: Callable[[StepMetrics], None] | None = None
        self._thread = EngineThread(self._engine)
        self._grammars: GrammarCompiler | None = None
        self._closed = False

    @property
    def capabilities(self) -> Capabilities:
        return self._capabilities

    @property
    def engine(self) -> Engine:
        """The engine itself, to look at between runs. Use `call` while it works."""
        return self._engine

    def count_tokens(self, text: str) -> int:
        return len(self.tokenizer.encode_answer(text))

    async def generate(
        self, request: Request, on_prefilled: Callable[[], None] | None = None
    ) -> Completion:
        start_s = self.now_s()
        ids = self.encode(request)
        if request.options:
            with self._clock.outside():
                return await self._choose(request, ids, start_s, on_prefilled)
        return await self._answer(request, ids, start_s, on_prefilled)

    async def stream(self, request: Request, on_text: Callable[[str], None]) -> Completion:
        """As `generate`; `on_text` is called with each new piece of the answer."""
        return await self._answer(request, self.encode(request), self.now_s(), on_text=on_text)

    async def complete(
        self,
        prompt: str | Sequence[int],
        request: Request,
        on_text: Callable[[str], None] | None = None,
    ) -> Completion:
        """Continue `prompt`, a text or tokens, without a chat template. Of `request` everything but
        the messages counts."""
        ids = self.tokenizer.encode([prompt]) if isinstance(prompt, str) else list(prompt)
        return await self._answer(request, ids, self.now_s(), on_text=on_text)

    async def _answer(
        self,
        request: Request,
        ids: list[int],
        start_s: float,
        on_prefilled: Callable[[], None] | None = None,
        on_text: Callable[[str], None] | None = None,
    ) -> Completion:
        generation = self.to_generation(request, ids, on_prefilled, on_text)
        with self._clock.outside():
            result = await self._thread.generate(generation)
        return self.to_completion(request, result, start_s)

    def now_s(self) -> float:
        return self._clock.now_s()

    def outside(self) -> AbstractContextManager[None]:
        """Hold while the engine's thread works for the loop."""
        return self._clock.outside()

    def encode(self, request: Request) -> list[int]:
        """The prompt in tokens."""
        return self.tokenizer.encode(
            self.tokenizer.template.pieces(request.messages, request.tools)
        )

    def to_generation(
        self,
        request: Request,
        ids: list[int],
        on_prefilled: Callable[[], None] | None = None,
        on_text: Callable[[str], None] | None = None,
    ) -> GenerationRequest:
        """The request in tokens."""
        from runtime.backends.torch_engine.sequence import GenerationRequest

        constraint = None
        if request.schema_json is not None:
            constraint = self._grammar().json_schema(request.schema_json)
        tell = self._thread.tell_loop
        return GenerationRequest(
            ids,
            request.max_tokens,
            request.temperature,
            request.top_p,
            seed=request.seed or 0,
            stop=request.stop,
            stop_ids=self.tokenizer.stop_ids,
            priority=request.priority,
            constraint=constraint,
            selection=self._selection,
            on_prefilled=None if on_prefilled is None else tell(on_prefilled),
            on_text=None if on_text is None else lambda text: tell(lambda: on_text(text))(),
        )

    def to_completion(self, request: Request, result: Result, start_s: float) -> Completion:
        """The result in texts."""
        text = result.text if request.stop else self.tokenizer.decode(result.ids)
        finish: Literal["stop", "length", "tool_calls"]
        finish = "length" if result.finish_reason == "length" else "stop"
        calls: tuple[ToolCall, ...] = ()
        if request.tools:
            text, calls = split_tool_calls(text, {t.name for t in request.tools}, request.key)
            finish = "tool_calls" if calls else finish
        # The token that ended the answer was decoded too, though it is no part of the text.
        ended = result.finish_reason == "stop" and not request.stop
        n_out = min(request.max_tokens, len(result.ids) + ended)
        return Completion(
            text,
            finish,
            Usage(result.prompt_tokens, max(1, n_out), result.cached_tokens),
            calls,
            start_s,
            result.first_token_s,
            self.now_s(),
        )

    async def _choose(
        self,
        request: Request,
        ids: list[int],
        start_s: float,
        on_prefilled: Callable[[], None] | None,
    ) -> Completion:
        """The option that is the likeliest whole answer: its tokens and the end of the turn after
        the prompt. All options share the prompt's KV; nothing is decoded."""
        from runtime.backends.torch_engine.sequence import GenerationRequest

        end = self.tokenizer.end_id
        answers = [[*self.tokenizer.encode_answer(o), end] for o in request.options]
        tell = None if on_prefilled is None else self._thread.tell_loop(on_prefilled)
        tasks = [
            asyncio.ensure_future(
                self._thread.generate(
                    GenerationRequest(
                        [*ids, *answer],
                        max_tokens=0,
                        score_from=len(ids),
                        priority=request.priority,
                        on_prefilled=tell if i == 0 else None,
                    )
                )
            )
            for i, answer in enumerate(answers)
        ]
        try:
            results = await asyncio.gather(*tasks)
        except BaseException:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            raise
        scores = [sum(r.logprobs) for r in results]
        best = max(range(len(scores)), key=scores.__getitem__)
        usage = Usage(len(ids), len(answers[best]), min(results[0].cached_tokens, len(ids) - 1))
        return Completion(request.options[best], "stop", usage, (), start_s, None, self.now_s())

    async def open_prompt(self, request: Request) -> PromptSession:
        """A prompt that can grow while it is prefilled; `request` gives all but its end. See
        `PromptSession`."""
        from runtime.backends.torch_engine.session import PromptSession

        if request.options:
            raise RequestRefusedError("a choice needs the whole prompt")
        return await PromptSession.open(self, self._thread, request)

    async def call(self, function: Callable[[Engine], object]) -> object:
        """`function` of the engine, run between two of its steps."""
        return await self._thread.call(function)

    def _grammar(self) -> GrammarCompiler:
        from runtime.backends.torch_engine.grammar import GrammarCompiler

        if self._grammars is None:
            vocab_size = self._engine.model.shape.vocab_size
            self._grammars = GrammarCompiler(
                self.tokenizer.to_json(), vocab_size, self.tokenizer.end_id
            )
        return self._grammars

    def _on_step(self, metrics: StepMetrics) -> None:
        if self.on_metrics is not None:
            self.on_metrics(metrics)

    async def close(self) -> None:
        if not self._closed:
            self._closed = True
            with self._clock.outside():
                await self._thread.close()
