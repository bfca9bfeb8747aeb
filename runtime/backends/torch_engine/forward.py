"""One step through the model: decode rows first, then the rows of the prompts' chunks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from runtime.backends.torch_engine.arrays import to_tensor
from runtime.backends.torch_engine.attention import Merge, PrefillPlan, SharedKeys
from runtime.backends.torch_engine.decode_batch import DecodeBatch
from runtime.backends.torch_engine.kv_pool import KVPool
from runtime.backends.torch_engine.model import Model
from runtime.backends.torch_engine.scheduler import Step
from runtime.backends.torch_engine.sequence import Chunk, SequenceState
from runtime.backends.torch_engine.token_sets import LateKV, SwiftKV

LogitRows = list[tuple[SequenceState, int]]
"""Whose a row of logits is, and how many of the sequence's tokens came before what it predicts."""


@dataclass(slots=True)
class Forward:
    """The model and the memory that steps run on."""

    model: Model
    pool: KVPool
    decode: DecodeBatch
    swiftkv: SwiftKV | None = None
    late_kv: LateKV | None = None

    @torch.inference_mode()
    def run(self, step: Step) -> tuple[torch.Tensor | None, LogitRows]:
        """Compute the step. Returns the logits of rows that predict a token that is wanted."""
        decodes = self.decode.prepare(step.decodes) if step.decodes else []
        plan = PrefillPlan(step.chunks, self.pool, self.model.device) if step.chunks else None
        if not decodes and plan is None:
            return None, []
        n = len(decodes)
        wanted: list[int] = list(range(n))
        rows: LogitRows = [(s, s.n_tokens) for s in decodes]
        cohort = step.cohort
        if plan is not None and (cohort is None or cohort.group == cohort.n_groups - 1):
            for chunk, (first, _) in zip(step.chunks, plan.spans, strict=True):
                for position in _wanted_positions(chunk):
                    wanted.append(n + first + position - chunk.start)
                    rows.append((chunk.sequence, position + 1))
        if cohort is not None and plan is not None:
            x = self._run_group(step, decodes, plan)
            if x is None:
                return None, []
        else:
            ids, positions = _tokens(decodes, step.chunks, self.model.device)
            if self.swiftkv is not None and self.late_kv is not None:
                x = self._run_swiftkv(ids, positions, n, plan, step.chunks, wanted)
                wanted = list(range(len(wanted)))
            else:
                x = self.model.embed(ids)
                x = self.model.run(x, self.model.rotation(positions), self._attend(n, plan))
        if not wanted:
            return None, []
        if len(wanted) != len(x):
            x = x.index_select(0, torch.tensor(wanted, device=x.device))
        return self.model.logits(x), rows

    def _attend(
        self, n: int, plan: PrefillPlan | None
    ) -> Callable[[int, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]:
        """Attention of `n` decode rows followed by the plan's."""
        decode = self.decode
        if plan is None:
            return decode.attend
        if not n:
            return plan.attend

        def both(layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            head = decode.attend(layer, q[:n], k[:n], v[:n])
            return torch.cat((head, plan.attend(layer, q[n:], k[n:], v[n:])))

        return both

    def _run_group(
        self, step: Step, decodes: list[SequenceState], plan: PrefillPlan
    ) -> torch.Tensor | None:
        """Layered Prefill: decode rows pass all layers, the cohort's only the group whose turn it
        is. Returns all rows behind the last group, before that those of the decodes."""
        cohort = step.cohort
        assert cohort is not None
        model, n = self.model, len(decodes)
        n_layers = model.shape.n_layers
        first = n_layers * cohort.group // cohort.n_groups
        last = n_layers * (cohort.group + 1) // cohort.n_groups
        ids, positions = _tokens(decodes, step.chunks, model.device)
        rotation = model.rotation(positions)
        alone = (rotation[0][:n], rotation[1][:n])
        prompt = model.embed(ids[n:]) if cohort.hidden is None else cohort.hidden
        x = model.embed(ids[:n])
        if n:
            x = model.run(x, alone, self.decode.attend, 0, first)
        x = model.run(torch.cat((x, prompt)), rotation, self._attend(n, plan), first, last)
        cohort.hidden = x[n:]
        head = x[:n]
        if n:
            head = model.run(head, alone, self.decode.attend, last)
        return torch.cat((head, x[n:])) if last == n_layers else head if n else None

    def _run_swiftkv(
        self,
        ids: torch.Tensor,
        positions: torch.Tensor,
        n: int,
        plan: PrefillPlan | None,
        chunks: list[Chunk],
        wanted: list[int],
    ) -> torch.Tensor:
        """SwiftKV: all rows pass the kept layers and leave keys and values for the later ones;
        only the wanted rows pass those. Returns the wanted rows."""
        assert self.swiftkv is not None and self.late_kv is not None
        model, keep = self.model, self.swiftkv.keep_layers
        rotation = model.rotation(positions)
        x = model.run(model.embed(ids), rotation, self._attend(n, plan), 0, keep)
        at = torch.tensor(wanted, dtype=torch.int64, device=model.device)
        if keep == model.shape.n_layers:
            return x.index_select(0, at)
        pairs = self.late_kv.keys_and_values(x, rotation)
        last = None
        if plan is not None:
            for i, (k, v) in enumerate(pairs):
                plan.write(keep + i, k[n:], v[n:])
            last = _last_rows(chunks, self.pool, model.device)
        x = x.index_select(0, at)
        if not wanted:
            return x
        rotation = (rotation[0].index_select(0, at), rotation[1].index_select(0, at))
        for layer in model.layers[keep:]:
            kv_layer = self.swiftkv.kv_layer(layer.index)
            q = self.late_kv.query(layer.index, x, rotation)
            k, v = pairs[kv_layer - keep]
            parts: list[torch.Tensor] = []
            if n:
                parts.append(self.decode.attend(kv_layer, q[:n], k[:n], v[:n]))
            if last is not None and len(wanted) > n:
                merge = Merge.of_nothing(q[n:])
                last.add_to(merge, kv_layer, q[n:])
                parts.append(merge.result())
            x = layer.finish(x, torch.cat(parts))
        return x


def _wanted_positions(chunk: Chunk) -> range:
    """Tokens of the chunk whose rows predict something that is wanted."""
    score_from = chunk.sequence.request.score_from
    if score_from is not None:
        return range(max(chunk.start, score_from - 1), chunk.end)
    return range(chunk.end - 1, chunk.end) if chunk.is_last else range(0)


def _last_rows(chunks: list[Chunk], pool: KVPool, device: torch.device) -> SharedKeys | None:
    """The last rows of chunks that end their prompt, each attending to its whole prompt."""
    done = [c for c in chunks if len(_wanted_positions(c))]
    if not done:
        return None
    runs = [[*c.context(), (-(1 << 40) - i, c.slots)] for i, c in enumerate(done)]
    return SharedKeys([(i, i + 1) for i in range(len(done))], runs, pool, device)


def _tokens(
    decodes: list[SequenceState], chunks: list[Chunk], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and positions of the step's rows."""
    ids = [np.array([s.output[-1] for s in decodes], np.int64)]
    positions = [np.array([s.n_tokens - 1 for s in decodes], np.int64)]
    for chunk in chunks:
        ids.append(chunk.sequence.tokens(chunk.start, chunk.end))
        positions.append(np.arange(chunk.start, chunk.end))
    pair = (to_tensor(np.concatenate(a), device) for a in (ids, positions))
    return next(pair), next(pair)
