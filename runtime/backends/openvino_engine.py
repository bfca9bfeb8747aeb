"""OpenVINO GenAI's continuous-batching pipeline, driven step by step. Runs in the engine's process.

Requests join and leave the batch between steps. Prompts are token ids that come from the chat
template piece by piece, so that no text of a document becomes a control token.
"""

from __future__ import annotations

import os
import shutil
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from runtime.backends.base import Request
from runtime.backends.choice_grammar import choice_grammar
from runtime.backends.json_grammar import json_grammar
from runtime.backends.openvino_precision import faster_precision
from runtime.backends.openvino_protocol import Event
from runtime.backends.openvino_settings import BLOCK_TOKENS, EngineSettings
from runtime.chat.template import PLAIN_TEMPLATE, ChatTemplate
from runtime.errors import BackendError, ContextOverflowError
from runtime.models.gguf_file import GgufHeader, read_gguf
from runtime.models.tool_calls import split_tool_calls

NAME = "local"

END_TEXTS = ("<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|end_of_text|>", "<|end|>", "</s>")
"""Control tokens that end a turn in the chat formats of the architectures read here."""


@dataclass(slots=True, eq=False)
class _Call:
    """A request inside the engine."""

    id: int
    request: Request
    prompt: list[int]
    handle: Any = None
    output: list[int] = field(default_factory=list[int])
    finish: Literal["stop", "length"] = "length"
    prefilled: bool = False


class Vocabulary:
    """The tokenizer of a model, with the texts and numbers of its control tokens.

    Attributes:
        ends: ids that end an answer.
    """

    def __init__(self, header: GgufHeader, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        special = header.special_tokens
        kinds = header.token_types
        self._control = frozenset(i for i, kind in enumerate(kinds) if kind == 3)
        named = ("eos_token_id", "eot_token_id", "eom_token_id")
        ids = [header.metadata.get(f"tokenizer.ggml.{name}") for name in named]
        ids += [special.get(text) for text in END_TEXTS]
        self.ends = tuple(sorted({i for i in ids if isinstance(i, int)}))
        if not self.ends:
            raise BackendError(f"{header.path} names no token that ends an answer", backend=NAME)
        tokens = header.tokens

        def text_of(name: str) -> str:
            number = header.metadata.get(f"tokenizer.ggml.{name}")
            return tokens[number] if isinstance(number, int) else ""

        self.template = ChatTemplate(
            header.chat_template or PLAIN_TEMPLATE,
            special,
            bos_token=text_of("bos_token_id"),
            eos_token=text_of("eos_token_id"),
        )
        self._bos = header.metadata.get("tokenizer.ggml.bos_token_id")
        self._adds_bos = bool(header.metadata.get("tokenizer.ggml.add_bos_token"))

    def prompt_ids(self, request: Request) -> list[int]:
        """The prompt of a request as token ids."""
        ids: list[int] = []
        for piece in self.template.pieces(request.messages, request.tools):
            ids.extend(self.encode(piece))
        if self._adds_bos and isinstance(self._bos, int) and ids[:1] != [self._bos]:
            ids.insert(0, self._bos)
        return ids

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`; control texts in it become control tokens."""
        encoded = self._tokenizer.encode(text, add_special_tokens=False)
        return [int(i) for i in encoded.input_ids.data[0]]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of an answer, control tokens left out."""
        plain = [i for i in ids if i not in self._control]
        return str(self._tokenizer.decode(plain, skip_special_tokens=False)) if plain else ""


class Engine:
    """A pipeline and the requests in it. Not for use by several threads."""

    def __init__(self, pipeline: Any, vocabulary: Vocabulary, settings: EngineSettings) -> None:
        self._pipeline = pipeline
        self._vocabulary = vocabulary
        self._settings = settings
        self._calls: dict[int, _Call] = {}
        self._waiting: deque[_Call] = deque()
        self._numbers = 0
        self._sound_grammars: set[str] = set()
        self._trial: _Call | None = None

    @property
    def busy(self) -> bool:
        return bool(self._calls or self._waiting)

    def add(self, id: int, request: Request) -> Event | None:
        """Take a request in; the event says what is wrong with it, if something is."""
        try:
            prompt = self._vocabulary.prompt_ids(request)
            self._check_context(request, len(prompt))
        except BackendError as error:
            return _error(id, error)
        self._waiting.append(_Call(id, request, prompt))
        return None

    def cancel(self, id: int) -> None:
        """Forget a request and free its place in the batch."""
        call = self._calls.pop(id, None)
        if call is not None:
            call.handle.cancel()
            if call is self._trial:
                self._trial = None
        self._waiting = deque(c for c in self._waiting if c.id != id)

    def step(self) -> list[Event]:
        """Compute one step of the whole batch."""
        events = self._admit()
        if self._pipeline.has_non_finished_requests():
            try:
                self._pipeline.step()
            except RuntimeError as error:
                events.extend(self._recover(error))
                return events
            if self._trial is not None:
                self._sound_grammars.add(_grammar_name(self._trial.request))
                self._trial = None
        for call in tuple(self._calls.values()):
            self._read(call, events)
        return events

    def _admit(self) -> list[Event]:
        """Hand waiting requests to the pipeline. Of grammars that it has not seen yet, one a step:
        one that it cannot compile fails the step, and then it is known whose it was."""
        events: list[Event] = []
        held: deque[_Call] = deque()
        while self._waiting:
            call = self._waiting.popleft()
            grammar = _grammar_name(call.request)
            untested = bool(grammar) and grammar not in self._sound_grammars
            if untested and self._trial is not None:
                held.append(call)
                continue
            try:
                self._start(call)
            except (RuntimeError, ValueError, TypeError) as error:
                events.append(_error(call.id, _refused(error)))
                continue
            if untested:
                self._trial = call
        self._waiting = held
        return events

    def _start(self, call: _Call) -> None:
        import numpy as np
        import openvino

        self._numbers += 1
        ids = openvino.Tensor(np.array([call.prompt], dtype=np.int64))
        config = generation_config(call.request, self._vocabulary.ends)
        call.handle = self._pipeline.add_request(self._numbers, ids, config)
        self._calls[call.id] = call

    def _recover(self, error: RuntimeError) -> list[Event]:
        """A step failed. If a grammar was on trial, it is the culprit: everything leaves the
        pipeline, and all others start again (their prompts are still in the prefix cache)."""
        culprit = self._trial
        if culprit is None:
            raise error
        self._trial = None
        others = [call for call in self._calls.values() if call is not culprit]
        for call in self._calls.values():
            call.handle.cancel()
        self._calls.clear()
        while self._pipeline.has_non_finished_requests():
            self._pipeline.step()
        for call in reversed(others):
            call.output.clear()
            self._waiting.appendleft(call)
        return [_error(culprit.id, _refused(error))]

    def _read(self, call: _Call, events: list[Event]) -> None:
        handle = call.handle
        finish = ""
        while handle.can_read():
            for output in handle.read().values():
                call.output.extend(output.generated_ids)
                finish = output.finish_reason.name
        if call.output and not call.prefilled:
            call.prefilled = True
            events.append({"event": "prefilled", "id": call.id})
        status = handle.get_status().name
        if status == "RUNNING":
            return
        del self._calls[call.id]
        if status == "FINISHED":
            call.finish = "stop" if finish == "STOP" else "length"
            events.append(self._done(call))
        else:
            tokens = len(call.prompt) + len(call.output)
            error = BackendError(
                f"the engine dropped the request ({status.lower()}) at {tokens} tokens; its KV "
                f"cache holds {self._settings.cache_tokens}: lower max_in_flight, or shorten the "
                "prompt",
                backend=NAME,
                retryable=True,
            )
            events.append(_error(call.id, error))

    def _done(self, call: _Call) -> Event:
        request = call.request
        text = self._vocabulary.decode(call.output)
        cuts = [at for stop in request.stop if stop and (at := text.find(stop)) >= 0]
        if cuts:
            text = text[: min(cuts)]
        calls: list[dict[str, str]] = []
        finish: str = call.finish
        if request.tools and not request.options and request.schema_json is None:
            text, found = split_tool_calls(text, [t.name for t in request.tools], request.key)
            calls = [
                {"id": c.id, "name": c.name, "arguments_json": c.arguments_json} for c in found
            ]
            if calls:
                finish = "tool_calls"
        return {
            "event": "done",
            "id": call.id,
            "text": text,
            "finish_reason": finish,
            "input_tokens": len(call.prompt),
            "output_tokens": len(call.output),
            "tool_calls": calls,
        }

    def _check_context(self, request: Request, prompt_tokens: int) -> None:
        limit = self._settings.context_tokens
        if prompt_tokens + request.max_tokens > limit:
            raise ContextOverflowError(
                f"the prompt has {prompt_tokens} tokens and may be answered with "
                f"{request.max_tokens}: more than the {limit} of model {request.model!r}; shorten "
                "the prompt, lower max_tokens or split the document",
                backend=NAME,
            )


def open_engine(settings: EngineSettings) -> Engine:
    """The engine with its weights loaded. Raises `BackendError`."""
    import openvino_genai as genai

    header = read_gguf(Path(settings.weights))
    scheduler = genai.SchedulerConfig()
    scheduler.enable_prefix_caching = True
    scheduler.dynamic_split_fuse = True
    scheduler.max_num_batched_tokens = settings.batch_tokens
    scheduler.max_num_seqs = settings.max_in_flight
    scheduler.num_kv_blocks = settings.cache_tokens // BLOCK_TOKENS
    try:
        pipeline = _load(genai, settings, scheduler)
    except RuntimeError as error:
        raise BackendError(
            f"OpenVINO cannot load {settings.weights}: {_last_line(error)}", backend=NAME
        ) from error
    return Engine(pipeline, Vocabulary(header, pipeline.get_tokenizer()), settings)


def _load(genai: Any, settings: EngineSettings, scheduler: Any) -> Any:
    """The pipeline, from the engine's own format, which loads several times as fast as GGUF. That
    is saved first if it was not yet, so that the first run computes what all later ones compute.
    Exact settings read the GGUF file: saving rounds the few float32 weights."""
    derived = Path(settings.derived)
    properties = settings.properties
    if not settings.exact:
        note = derived.with_name(f"{derived.name}-precision.json")
        precision = faster_precision(note, settings.threads)
        if precision:
            properties["INFERENCE_PRECISION_HINT"] = precision
    if not settings.exact and (_is_saved(derived) or _save(genai, settings, derived)):
        return genai.ContinuousBatchingPipeline(str(derived), scheduler, "CPU", properties)
    return genai.ContinuousBatchingPipeline(settings.weights, scheduler, "CPU", properties)


def _save(genai: Any, settings: EngineSettings, derived: Path) -> bool:
    """Have OpenVINO save what it makes of the weights, aside, and rename it into place. False when
    the disk has no room."""
    weights_bytes = Path(settings.weights).stat().st_size
    if shutil.disk_usage(derived.parent).free < 3 * weights_bytes:
        return False
    staging = derived.with_name(f".{derived.name}-{os.getpid()}")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir()
    try:
        link = staging / "model.gguf"  # what is saved is saved beside the file
        try:
            os.link(settings.weights, link)
        except OSError:
            link.symlink_to(settings.weights)
        tokenizer = genai.Tokenizer(str(link), enable_save_ov_model=True)
        scheduler = genai.SchedulerConfig()
        scheduler.num_kv_blocks = 1
        genai.ContinuousBatchingPipeline(
            str(link), tokenizer, scheduler, "CPU", enable_save_ov_model=True
        )
        link.unlink()
        if not _is_saved(staging):
            return False
        if not _is_saved(derived):  # another process may have been faster
            shutil.rmtree(derived, ignore_errors=True)
            staging.rename(derived)
        return True
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _is_saved(folder: Path) -> bool:
    return all(
        (folder / f"openvino_{part}.xml").exists() for part in ("model", "tokenizer", "detokenizer")
    )


def generation_config(request: Request, ends: Sequence[int]) -> Any:
    """OpenVINO's settings for one request."""
    import openvino_genai as genai

    config = genai.GenerationConfig(max_new_tokens=request.max_tokens)
    config.eos_token_id = ends[0]
    config.stop_token_ids = set(ends)
    stops = {stop for stop in request.stop if stop}
    if stops:
        config.stop_strings = stops
        config.include_stop_str_in_output = True  # cut off later, exactly where it begins
    if request.temperature > 0:
        config.do_sample = True
        config.temperature = request.temperature
        config.top_p = request.top_p
        config.rng_seed = request.seed or 0
    grammar = _grammar(request)
    if grammar is not None:
        config.structured_output_config = grammar
    return config


def _grammar(request: Request) -> Any:
    import openvino_genai as genai

    output = genai.StructuredOutputConfig
    if request.options:
        return output(grammar=choice_grammar(request.options))
    if request.schema_json is not None:
        grammar = json_grammar(request.schema_json)
        return output(grammar=grammar) if grammar else output(json_schema=request.schema_json)
    return None


def _grammar_name(request: Request) -> str:
    if request.options:
        return repr(request.options)
    return request.schema_json or ""


def _refused(error: Exception) -> BackendError:
    return BackendError(
        f"the engine does not take this request: {_last_line(error)}; simplify its schema",
        backend=NAME,
    )


def _last_line(error: Exception) -> str:
    """What OpenVINO says, without the addresses of its sources."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1].rpartition(": ")[2] if lines else type(error).__name__


def _error(id: int, error: BackendError) -> Event:
    return {
        "event": "error",
        "id": id,
        "type": type(error).__name__,
        "message": str(error),
        "retryable": error.retryable,
    }
