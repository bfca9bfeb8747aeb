"""The engine: requests in, one step at a time, results out. One thread drives it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from costmodel.usage import Usage
from runtime.backends.torch_engine.decode_batch import DecodeBatch
from runtime.backends.torch_engine.errors import ENGINE, RequestRefusedError
from runtime.backends.torch_engine.forward import Forward
from runtime.backends.torch_engine.kv_pool import KVPool
from runtime.backends.torch_engine.model import Model
from runtime.backends.torch_engine.radix import RadixTree
from runtime.backends.torch_engine.sampling import chosen_logprobs, sample
from runtime.backends.torch_engine.scheduler import Scheduler, SchedulerConfig, Step
from runtime.backends.torch_engine.sequence import (
    FinishReason,
    GenerationRequest,
    Result,
    SequenceState,
    Stage,
    TextStream,
)
from runtime.backends.torch_engine.token_sets import (
    LateKV,
    SwiftKV,
    selection_problem,
    selective_prefill,
)
from runtime.errors import BackendError, ContextOverflowError


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """How an engine runs.

    Attributes:
        max_kv_tokens: slots of the KV pool. Decoding keeps a second copy of what running requests
            attend to, so KV memory is at most twice the pool.
        scheduler: limits of a step.
        cascade: read keys shared by running requests once for all of them (exact).
        swiftkv: an approximation for the whole engine; None for exact answers.
    """

    max_kv_tokens: int = 65_536
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    cascade: bool = True
    swiftkv: SwiftKV | None = None


@dataclass(frozen=True, slots=True)
class StepMetrics:
    """What one step did.

    Attributes:
        usage: prompt tokens let in (cached ones included), tokens sampled, tokens found cached.
        prefilled_tokens, decoded_tokens: rows computed for prompts and for answers.
        evicted_tokens: dropped from the radix tree to make room.
        preempted: requests sent back to wait.
        running, waiting: requests after the step.
        schedule_s, forward_s, sample_s: parts of `step_s`.
    """

    usage: Usage
    prefilled_tokens: int
    decoded_tokens: int
    evicted_tokens: int
    preempted: int
    running: int
    waiting: int
    schedule_s: float
    forward_s: float
    sample_s: float
    step_s: float


class Engine:
    """A model, its KV cache and the requests in it.

    Args:
        now_s: a monotonic clock in seconds.
        text_stream: makes a decoder of one request's tokens; without it there are no texts, and
            stop texts are refused.
        on_step: told about every step.
    """

    def __init__(
        self,
        model: Model,
        now_s: Callable[[], float],
        config: EngineConfig | None = None,
        *,
        text_stream: Callable[[], TextStream] | None = None,
        on_step: Callable[[StepMetrics], None] | None = None,
    ) -> None:
        self.model = model
        self.config = config = config or EngineConfig()
        self._now_s, self._text_stream, self._on_step = now_s, text_stream, on_step
        shape, swiftkv = model.shape, config.swiftkv
        late_kv, n_kv_layers, namespace = None, shape.n_layers, ""
        if swiftkv is not None:
            problem = swiftkv.problem(shape.n_layers)
            if problem is not None:
                raise RequestRefusedError(f"SwiftKV: {problem}")
            if config.scheduler.layer_groups is not None:
                raise RequestRefusedError("SwiftKV and layer groups cannot be combined")
            n_kv_layers, namespace = swiftkv.kv_layers(shape.n_layers), swiftkv.namespace
            late_kv = LateKV(model, swiftkv)
        self.pool = KVPool(
            n_kv_layers,
            config.max_kv_tokens,
            shape.n_kv_heads,
            shape.head_dim,
            model.dtype,
            model.device,
        )
        self.tree = RadixTree()
        self.scheduler = Scheduler(self.pool, self.tree, config.scheduler, namespace)
        self.decode_batch = DecodeBatch(self.pool, model.device, cascade=config.cascade)
        self._forward = Forward(model, self.pool, self.decode_batch, swiftkv, late_kv)
        self._uids = 0

    # ---- requests

    def submit(
        self,
        request: GenerationRequest,
        on_done: Callable[[SequenceState], None] | None = None,
        *,
        is_open: bool = False,
    ) -> SequenceState:
        """Take a request. `on_done` is called once, when `result` or `error` of the returned state
        is set. Raises `BackendError` for one that can never run."""
        self._uids += 1
        sequence = SequenceState(self._uids, request, is_open=is_open)
        self.check_request(sequence)
        sequence.on_done = on_done
        if self._text_stream is not None and (request.stop or request.on_text is not None):
            sequence.stream = self._text_stream()
        self.scheduler.add(sequence)
        return sequence

    def check_request(self, sequence: SequenceState) -> None:
        """Raise `BackendError` when the request, with its prompt as it is now, can never run."""
        request, shape = sequence.request, self.model.shape
        n, prompt = len(sequence.prompt), sequence.prompt
        if not n and not sequence.is_open:
            raise RequestRefusedError("the prompt is empty")
        if n and not (int(prompt.min()) >= 0 and int(prompt.max()) < shape.vocab_size):
            raise RequestRefusedError(
                f"token ids from {prompt.min()} to {prompt.max()}; the model has "
                f"{shape.vocab_size} tokens"
            )
        limit = min(shape.context_tokens, self.pool.n_slots)
        if n + request.max_tokens > limit:
            what = "the model's context" if limit == shape.context_tokens else "max_kv_tokens"
            raise ContextOverflowError(
                f"the prompt has {n} tokens and may be answered with {request.max_tokens}: more "
                f"than the {limit} of {what}; shorten the prompt or lower max_tokens",
                backend=ENGINE,
            )
        if request.stop and self._text_stream is None:
            raise RequestRefusedError("stop texts need an engine with a tokenizer")
        plain = self.config.swiftkv is None and not sequence.is_open
        if request.score_from is not None and (not plain or not 1 <= request.score_from < n):
            raise RequestRefusedError(
                f"scoring from token {request.score_from} of {n} needs a closed prompt, an exact "
                "engine and at least one token before and after"
            )
        if request.selection is not None:
            problem = selection_problem(request.selection, shape.n_layers)
            if problem is not None or not plain or self.config.scheduler.layer_groups is not None:
                raise RequestRefusedError(
                    f"FastKV: {problem or 'not with SwiftKV, layer groups or open prompts'}"
                )
        if sequence.is_open and self.config.scheduler.layer_groups is not None:
            raise RequestRefusedError("prompts cannot grow under layer groups")

    def cancel(self, sequence: SequenceState) -> None:
        """Give a request up; its tokens stay as cache. Without effect on a finished one."""
        if sequence.stage is not Stage.DONE and not sequence.cancelled:
            self.scheduler.remove(sequence)

    def update_prompt(self, sequence: SequenceState, ids: Sequence[int]) -> int:
        """Replace the prompt of an open request. What it has in common with the old one from the
        start stays computed. Returns how many computed tokens became useless (they stay as cache).
        Raises `BackendError` when it no longer fits; the request is then cancelled."""
        if sequence.stage is Stage.DONE and sequence.error is None:
            raise RequestRefusedError("the open prompt was given up")
        old, new = sequence.prompt, np.asarray(ids, np.int64)
        n = min(len(old), len(new))
        differ = np.flatnonzero(old[:n] != new[:n])
        common = int(differ[0]) if len(differ) else n
        sequence.prompt = new
        try:
            self.check_request(sequence)
        except BackendError:
            sequence.prompt = old
            self.cancel(sequence)
            raise
        computed = sequence.n_kv
        if computed > min(common, max(0, sequence.target)):
            self.scheduler.rewind(sequence)
        return max(0, computed - common)

    def close_prompt(self, sequence: SequenceState) -> None:
        """The prompt is whole: the answer may begin."""
        sequence.is_open = False
        try:
            self.check_request(sequence)
        except BackendError:
            self.cancel(sequence)
            raise
        self.scheduler.resort(sequence)

    @property
    def has_work(self) -> bool:
        return not self.scheduler.idle

    def generate(self, requests: Iterable[GenerationRequest]) -> list[Result]:
        """Run `requests` to the end and return their results in order. Raises the first error."""
        sequences = [self.submit(r) for r in requests]
        while any(s.result is None and s.error is None for s in sequences):
            self.step()
        results: list[Result] = []
        for sequence in sequences:
            if sequence.error is not None:
                raise sequence.error
            assert sequence.result is not None
            results.append(sequence.result)
        return results

    # ---- a step

    def step(self) -> StepMetrics | None:
        """Compute one step. None when there is nothing to compute: no request, or only open
        prompts that wait for more."""
        try:
            metrics = self._step()
        except Exception as error:
            self.stop(f"a step of the torch engine failed: {error}")
            raise
        if metrics is not None and self._on_step is not None:
            self._on_step(metrics)
        return metrics

    def _step(self) -> StepMetrics | None:
        start_s = self._now_s()
        scheduler, stats = self.scheduler, self.tree.stats
        evicted, preempted = stats.evicted_tokens, scheduler.preempted
        step = scheduler.schedule()
        if not step:
            return None
        scheduled_s = self._now_s()
        for sequence in [c.sequence for c in step.chunks] + step.selective:
            if sequence.start_s is None:
                sequence.start_s = start_s
        logits, rows = self._forward.run(step)
        logits, rows = self._add_selective(step, logits, rows)
        forward_s = self._now_s()
        for chunk in scheduler.advance(step):
            if chunk.is_last and not chunk.sequence.prefilled:
                self._note_prefilled(chunk.sequence)
        sampled = self._commit(logits, rows) if logits is not None else 0
        scheduler.check_idle()
        end_s = self._now_s()
        # A cohort's prompts are counted once, with its first group.
        counted = step.cohort is None or step.cohort.group == 1
        prefilled = sum(len(c.slots) for c in step.chunks) if counted else 0
        prefilled += sum(len(s.prompt) for s in step.selective)
        return StepMetrics(
            usage=Usage(prefilled + step.hit_tokens, sampled, step.hit_tokens),
            prefilled_tokens=prefilled,
            decoded_tokens=len(step.decodes),
            evicted_tokens=stats.evicted_tokens - evicted,
            preempted=scheduler.preempted - preempted,
            running=len(scheduler.prefilling) + len(scheduler.decoding),
            waiting=len(scheduler.waiting),
            schedule_s=scheduled_s - start_s,
            forward_s=forward_s - scheduled_s,
            sample_s=end_s - forward_s,
            step_s=end_s - start_s,
        )

    def _add_selective(
        self, step: Step, logits: torch.Tensor | None, rows: list[tuple[SequenceState, int]]
    ) -> tuple[torch.Tensor | None, list[tuple[SequenceState, int]]]:
        for sequence in step.selective:
            row = self.model.logits(selective_prefill(self.model, self.pool, sequence))
            logits = row if logits is None else torch.cat((logits, row))
            rows.append((sequence, len(sequence.prompt)))
            self._note_prefilled(sequence)
        return logits, rows

    def _note_prefilled(self, sequence: SequenceState) -> None:
        sequence.prefilled = True
        if sequence.request.on_prefilled is not None and not sequence.cancelled:
            sequence.request.on_prefilled()

    @torch.inference_mode()
    def _commit(self, logits: torch.Tensor, rows: list[tuple[SequenceState, int]]) -> int:
        """Sample, or score, what the rows predict. Returns how many tokens were sampled."""
        scoring = [
            i
            for i, (s, _) in enumerate(rows)
            if s.request.score_from is not None and not s.cancelled
        ]
        if scoring:
            wanted = [int(rows[i][0].prompt[rows[i][1]]) for i in scoring]
            scored = chosen_logprobs(logits[scoring], wanted)
            for i, logprob in zip(scoring, scored, strict=True):
                sequence, position = rows[i]
                sequence.logprobs.append(logprob)
                if position == len(sequence.prompt) - 1:
                    self._finish(sequence, "scored")
        open_rows = [i for i, (s, _) in enumerate(rows) if s.request.score_from is None]
        for i in open_rows:
            if rows[i][0].request.max_tokens == 0 and not rows[i][0].cancelled:
                self._finish(rows[i][0], "prefilled")
        open_rows = [
            i for i in open_rows if rows[i][0].stage is not Stage.DONE and not rows[i][0].cancelled
        ]
        if not open_rows:
            return 0
        sequences = [rows[i][0] for i in open_rows]
        if len(open_rows) != len(rows):
            logits = logits[open_rows]
        tokens = sample(logits, sequences)
        if any(s.request.logprobs for s in sequences):
            for sequence, logprob in zip(sequences, chosen_logprobs(logits, tokens), strict=True):
                sequence.logprobs.append(logprob)
        now_s = self._now_s()
        for sequence, token in zip(sequences, tokens, strict=True):
            if sequence.first_token_s is None:
                sequence.first_token_s = now_s
            self._push(sequence, token)
        return len(tokens)

    def _push(self, sequence: SequenceState, token: int) -> None:
        """A new token of an answer: keep it, and see whether it is the last."""
        request = sequence.request
        if token in request.stop_ids:
            self._finish(sequence, "stop")
            return
        sequence.output.append(token)
        if sequence.stream is not None and self._push_text(sequence, token):
            sequence.stream = None  # what may follow a stop text is no part of the answer
            self._finish(sequence, "stop")
            return
        constraint = request.constraint
        if constraint is not None:
            constraint.accept(token)
        if constraint is not None and constraint.finished:
            self._finish(sequence, "stop")
        elif len(sequence.output) >= request.max_tokens:
            self._finish(sequence, "length")

    def _push_text(self, sequence: SequenceState, token: int) -> bool:
        """Add the token's text; true when a stop text appeared, which is then cut off. Text that
        may yet turn out to begin a stop text is held back from `on_text`."""
        assert sequence.stream is not None
        request = sequence.request
        told = sequence.told
        sequence.text += sequence.stream.push(token)
        found = [at for at in (sequence.text.find(t) for t in request.stop if t) if at >= 0]
        if found:
            sequence.text = sequence.text[: min(found)]
        held = 0 if found else _held_back(sequence.text, request.stop)
        safe = len(sequence.text) - held
        if request.on_text is not None and safe > told:
            request.on_text(sequence.text[told:safe])
            sequence.told = safe
        return bool(found)

    def _finish(self, sequence: SequenceState, reason: FinishReason) -> None:
        request = sequence.request
        if sequence.stream is not None:
            sequence.text += sequence.stream.rest()
        if request.on_text is not None and len(sequence.text) > sequence.told:
            request.on_text(sequence.text[sequence.told :])
            sequence.told = len(sequence.text)
        sequence.result = Result(
            ids=list(sequence.output),
            text=sequence.text,
            finish_reason=reason,
            prompt_tokens=len(sequence.prompt),
            cached_tokens=sequence.cached_tokens or 0,
            logprobs=list(sequence.logprobs),
            start_s=sequence.start_s or 0.0,
            first_token_s=sequence.first_token_s,
            end_s=self._now_s(),
            preemptions=sequence.preemptions,
        )
        self.scheduler.remove(sequence)
        if sequence.on_done is not None:
            sequence.on_done(sequence)

    def stop(self, why: str) -> None:
        """End every request with an error and drop the cache."""
        self.decode_batch.clear()
        for sequence in self.scheduler.fail_all():
            sequence.error = BackendError(why, backend=ENGINE, retryable=True)
            if sequence.on_done is not None:
                sequence.on_done(sequence)

    def check(self) -> None:
        """Raise `AssertionError` when slots or locks do not add up."""
        self.scheduler.check()


def _held_back(text: str, stops: Sequence[str]) -> int:
    """How many last characters of `text` may begin a stop text.

    Example:
        >>> _held_back("so it is.\\n", ("\\n\\n",)), _held_back("so it is.", ("\\n\\n",))
        (1, 0)
    """
    longest = 0
    for stop in stops:
        for n in range(min(len(stop) - 1, len(text)), longest, -1):
            if text.endswith(stop[:n]):
                longest = n
                break
    return longest
