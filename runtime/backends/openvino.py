"""The embedded default engine: OpenVINO GenAI in a process of its own (extra `local`).

It reads GGUF, batches continuously, keeps a paged KV cache that reuses prompt prefixes in blocks of
32 tokens, and enforces schemas and choices while decoding. It reuses only what an earlier step has
finished, so the dispatcher primes shared prefixes (`Capabilities.prime_prefix`); and it does not
say how many tokens it reused.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import logging
import os
import signal
import sys
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from costmodel.usage import Usage
from runtime.backends.base import Backend, Capabilities, Completion, Request, ToolCall
from runtime.backends.openvino_protocol import Event, decode, encode, request_document
from runtime.backends.openvino_settings import (
    BLOCK_TOKENS,
    MAX_IN_FLIGHT,
    EngineSettings,
    cache_size,
    context_limit,
    usable_cores,
)
from runtime.clock import Clock
from runtime.errors import BackendError, ContextOverflowError
from runtime.models.memory import read_memory
from runtime.models.store import ModelStore, StoredModel

if TYPE_CHECKING:
    from runtime.backends.create import EngineOptions

NAME = "local"
_log = logging.getLogger("halo.local")

STALL_S = 300.0
"""Without a sign of life for this long while it has requests, the engine is taken for stuck. A step
takes about a second on two cores."""

LOAD_S = 600.0
COMMAND = (sys.executable, "-P", "-m", "runtime.backends.openvino_worker")
CLOSE_S = 5.0
CRASHES_IN_A_ROW = 3
_LINE_LIMIT = 1 << 26


def describe(
    model: str, models_dir: Path | None = None, *, max_in_flight: int | None = None
) -> Capabilities:
    """What the engine will offer with `model`, which need not have been fetched yet. Raises
    `ModelNotFoundError`."""
    store = ModelStore(models_dir)
    stored = store.find(model)
    if stored is not None:
        context, kv_values = stored.context_tokens, stored.kv_values_per_token
    else:
        entry = store.entry(model)
        if entry is None:
            raise store.unknown(model)
        context, kv_values = entry.context_tokens, entry.kv_values_per_token
    assert context is not None and kv_values is not None  # checked when it was added
    return _capabilities(context, kv_values, max_in_flight)


def _capabilities(context: int, kv_values: int, max_in_flight: int | None) -> Capabilities:
    return Capabilities(
        max_in_flight=max_in_flight or MAX_IN_FLIGHT,
        context_tokens=context_limit(context, kv_values, read_memory()),
        prefix_cache=True,
        prime_prefix=True,
        prefix_block_tokens=BLOCK_TOKENS,
        # A block takes two cores most of a second with a model of 1.5 billion parameters (45 prompt
        # tokens a second with AVX2); who is held for it waits for a step that others fill.
        prime_tokens=BLOCK_TOKENS,
        reports_cached_tokens=False,
        # bfloat16 sums depend on what else is in the batch, which can turn a near tie.
        deterministic=False,
    )


async def open_backend(model: str, clock: Clock, options: EngineOptions) -> Backend:
    """The engine with `model` loaded; a model of the catalogue is fetched first when it is missing.
    Raises `BackendError`."""
    if importlib.util.find_spec("openvino_genai") is None:
        raise BackendError(
            "the local engine is not installed: pip install 'halo-flow[local]'", backend=NAME
        )
    say = options.announce or _log.info
    with clock.outside():
        stored = await asyncio.to_thread(_stored, model, options.models_dir, say)
    backend = OpenVinoBackend(stored, clock, options)
    say(f"loading model {model}")
    try:
        await backend.start()
    except BaseException:
        await backend.close()
        raise
    return backend


def _stored(model: str, models_dir: Path | None, say: Callable[[str], None]) -> StoredModel:
    store = ModelStore(models_dir, say=say)
    stored = store.find(model)
    if stored is not None:
        return stored
    entry = store.entry(model)
    if entry is None:
        raise store.unknown(model)
    say(f"fetching model {model}: {entry.download_bytes / 1e6:,.0f} MB, to {store.models_dir}")
    tenth = 0

    def on_progress(name: str, done_bytes: int, total_bytes: int) -> None:
        nonlocal tenth
        now = 10 * done_bytes // max(1, total_bytes)
        if now > tenth:
            tenth = now
            say(f"fetching model {name}: {done_bytes / 1e6:,.0f} of {total_bytes / 1e6:,.0f} MB")

    return store.pull(model, on_progress)


@dataclass(slots=True, eq=False)
class _Waiting:
    """A call whose answer has not come."""

    answer: asyncio.Future[Completion]
    on_prefilled: Callable[[], None] | None
    start_s: float
    first_token_s: float | None = None


class OpenVinoBackend(Backend):
    """One model in one engine process. A process that died is started again by the next call."""

    def __init__(self, model: StoredModel, clock: Clock, options: EngineOptions) -> None:
        assert model.context_tokens is not None and model.kv_values_per_token is not None
        self.name = NAME
        self._model = model
        self._clock = clock
        self._capabilities = _capabilities(
            model.context_tokens, model.kv_values_per_token, options.max_in_flight
        )
        self._threads = options.threads or usable_cores()
        self._exact = options.exact
        self._stall_s = STALL_S
        self._process: asyncio.subprocess.Process | None = None
        self._tasks: tuple[asyncio.Task[None], ...] = ()
        self._starting = asyncio.Lock()
        self._calls: dict[int, _Waiting] = {}
        self._numbers = 0
        self._crashes = 0
        self._closed = False
        self._heard_s = 0.0
        self._noise: deque[str] = deque(maxlen=20)
        self._bytes_per_token = 4.0

    @property
    def capabilities(self) -> Capabilities:
        return self._capabilities

    def count_tokens(self, text: str) -> int:
        """Estimated with the bytes a token that this model's prompts have had so far."""
        return max(1, round(len(text.encode()) / self._bytes_per_token)) if text else 0

    async def generate(
        self, request: Request, on_prefilled: Callable[[], None] | None = None
    ) -> Completion:
        await self.start()
        self._numbers += 1
        number = self._numbers
        answer: asyncio.Future[Completion] = asyncio.get_running_loop().create_future()
        self._calls[number] = _Waiting(answer, on_prefilled, self._clock.now_s())
        if len(self._calls) == 1:
            self._heard_s = self._clock.now_s()
        self._send({"op": "add", "id": number, "request": request_document(request)})
        try:
            completion = await answer
        except asyncio.CancelledError:
            if self._calls.pop(number, None) is not None:
                self._send({"op": "cancel", "id": number})
            raise
        self._learn(request, completion)
        return completion

    def _learn(self, request: Request, completion: Completion) -> None:
        n_bytes = sum(len(m.content.encode(errors="replace")) for m in request.messages)
        if n_bytes > 400:  # below that, the template's own tokens weigh too much
            ratio = n_bytes / completion.usage.input_tokens
            self._bytes_per_token += 0.1 * (min(8.0, max(0.5, ratio)) - self._bytes_per_token)

    # --- the engine's process --------------------------------------------------------------------

    async def start(self) -> None:
        """Have a process with the model loaded. Raises `BackendError`."""
        async with self._starting:
            if self._closed:
                raise BackendError("the engine has been closed", backend=NAME)
            if self._process is not None and self._process.returncode is None:
                return
            if self._crashes >= CRASHES_IN_A_ROW:
                raise BackendError(
                    f"the engine crashed {self._crashes} times in a row and is not started again: "
                    f"{self._last_words()}",
                    backend=NAME,
                )
            await self._launch()

    async def _launch(self) -> None:
        process = await asyncio.create_subprocess_exec(
            *COMMAND, self._settings().to_json(),
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=_environment(), limit=_LINE_LIMIT,
            start_new_session=True,  # Ctrl-C is for the run, which lets calls in flight finish
        )  # fmt: skip
        self._noise.clear()
        listen = asyncio.create_task(self._listen_to_noise(process))
        self._process = process
        self._tasks = (listen,)
        assert process.stdout is not None
        try:
            line = await asyncio.wait_for(process.stdout.readline(), LOAD_S)
        except TimeoutError:
            await self._kill()
            raise BackendError(
                f"the model was not loaded within {LOAD_S:.0f} s", backend=NAME
            ) from None
        event = decode(line) if line else {"event": "failed", "message": await self._cause()}
        if event["event"] != "ready":
            await self._kill()
            raise BackendError(
                f"model {self._model.name} cannot be loaded: {event['message']}", backend=NAME
            )
        self._heard_s = self._clock.now_s()
        self._tasks = (
            listen,
            asyncio.create_task(self._read(process)),
            asyncio.create_task(self._watch(process)),
        )

    def _settings(self) -> EngineSettings:
        import openvino_genai as genai

        model = self._model
        capabilities = self._capabilities
        context_tokens = capabilities.context_tokens
        assert context_tokens is not None and model.kv_values_per_token is not None
        version = str(genai.__version__).partition("-")[0]
        return EngineSettings(
            weights=str(model.weights),
            derived=str(model.folder / f"openvino-{version}"),
            threads=self._threads,
            context_tokens=context_tokens,
            cache_tokens=cache_size(
                context_tokens,
                capabilities.max_in_flight,
                model.kv_values_per_token,
                model.size_bytes,
                read_memory(),
                exact=self._exact,
            ),
            max_in_flight=capabilities.max_in_flight,
            exact=self._exact,
        )

    def _send(self, message: dict[str, Any]) -> None:
        process = self._process
        if process is not None and process.stdin is not None and process.returncode is None:
            process.stdin.write(encode(message))

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        try:
            while line := await process.stdout.readline():
                self._heard_s = self._clock.now_s()
                self._on_event(decode(line))
            cause = await self._cause()
        except ValueError as error:
            cause = f"it said something that is not a message: {error}"
            await self._kill()
        self._fail_all(f"the engine ended while it worked: {cause}")

    def _on_event(self, event: Event) -> None:
        number = event.get("id")
        call = self._calls.get(number) if isinstance(number, int) else None
        if call is None:
            return
        if event["event"] == "prefilled":
            call.first_token_s = self._clock.now_s()
            if call.on_prefilled is not None:
                call.on_prefilled()
            return
        assert isinstance(number, int)
        del self._calls[number]
        if call.answer.done():
            return
        if event["event"] == "error":
            kind = ContextOverflowError if event["type"] == "ContextOverflowError" else BackendError
            error = kind(event["message"], backend=NAME, retryable=event["retryable"])
            call.answer.set_exception(error)
            return
        self._crashes = 0
        call.answer.set_result(
            Completion(
                event["text"],
                event["finish_reason"],
                Usage(event["input_tokens"], event["output_tokens"]),
                tuple(ToolCall(**c) for c in event["tool_calls"]),
                call.start_s,
                call.first_token_s,
                self._clock.now_s(),
            )
        )

    async def _watch(self, process: asyncio.subprocess.Process) -> None:
        """End a process that has requests and gives no sign of life."""
        while process.returncode is None:
            if not self._calls:
                self._heard_s = self._clock.now_s()
            silent_s = self._clock.now_s() - self._heard_s
            if silent_s > self._stall_s:
                self._noise.append(f"it had given no sign of life for {silent_s:.0f} s")
                process.kill()
                return
            await self._clock.sleep_s(min(5.0, self._stall_s / 4))

    def _fail_all(self, reason: str) -> None:
        """The process is gone: every call in it fails, and may be asked again of a new one."""
        calls, self._calls = self._calls, {}
        if calls:
            self._crashes += 1
        for call in calls.values():
            if not call.answer.done():
                call.answer.set_exception(BackendError(reason, backend=NAME, retryable=True))

    async def _listen_to_noise(self, process: asyncio.subprocess.Process) -> None:
        assert process.stderr is not None
        with contextlib.suppress(ValueError):
            while line := await process.stderr.readline():
                self._noise.append(line.decode(errors="replace").rstrip())

    async def _cause(self) -> str:
        """Why the process ended."""
        process = self._process
        assert process is not None
        code = await process.wait()
        await asyncio.wait(self._tasks[:1])
        if code == -9 and not self._noise:  # SIGKILL, which not every system names
            return (
                "it was killed (SIGKILL); when memory is short the system does that: use a smaller "
                "model or fewer max_in_flight"
            )
        how = f"by {signal.Signals(-code).name}" if code < 0 else f"with code {code}"
        return f"it ended {how}: {self._last_words()}"

    def _last_words(self) -> str:
        lines = [line for line in self._noise if line.strip()]
        return lines[-1] if lines else "it left no message"

    async def _kill(self) -> None:
        process = self._process
        if process is not None and process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    async def close(self) -> None:
        """End the process. Calls that still wait fail."""
        self._closed = True
        process = self._process
        if process is None:
            return
        self._fail_all("the engine was closed")
        if process.stdin is not None:
            process.stdin.close()
        try:
            await asyncio.wait_for(process.wait(), CLOSE_S)
        except TimeoutError:
            await self._kill()
        for task in self._tasks[2:]:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        self._process = None


def _environment() -> dict[str, str]:
    """The process imports the same Halo as this one, and its idle threads do not spin."""
    environment = dict(os.environ)
    root = str(Path(__file__).resolve().parent.parent.parent)
    inherited = environment.get("PYTHONPATH")
    environment["PYTHONPATH"] = f"{root}{os.pathsep}{inherited}" if inherited else root
    environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    return environment
