"""What prompts find in the caches of simulated engines."""

from __future__ import annotations

from costmodel.simulator.compiled import CompiledWorkload
from costmodel.simulator.machine import LinkSpec
from costmodel.simulator.state import RESIDENT, EngineState, WorkerState


class Prefixes:
    """Looks up, inserts and fetches prefixes. `link`: how they move between workers, or None."""

    def __init__(
        self, compiled: CompiledWorkload, workers: list[WorkerState], link: LinkSpec | None
    ) -> None:
        self.compiled = compiled
        self.workers = workers
        self.link = link
        self.G = compiled.n_groups

    def hits(
        self, engine: EngineState, item: int, first: int, count: int, prompt: int | None = None
    ) -> float:
        """Prompt tokens of calls [first, first + count) that need not be computed."""
        position, g = divmod(item, self.G)
        path = self.compiled.paths[position]
        assert path is not None
        cache = engine.cache
        stride = self.G + 1
        end = first + count
        alive = count
        hits = 0
        fresh = 0
        in_batch = engine.spec.shares_in_batch
        block = engine.spec.block_tokens
        matched = 0
        for node, part_tokens, per_row in path.nodes:
            if per_row:
                rows = cache.overlap(node * stride + g + 1, first, end)
                if rows < alive:
                    if block > 1:
                        hits += (alive - rows) * (matched // block * block)
                    else:
                        hits += (alive - rows) * matched
                    alive = rows
                if not alive:
                    break
                matched += part_tokens
            else:
                if not cache.overlap(node * stride, 0, 1):
                    # One call computes it, the others of the batch find it.
                    if not in_batch or alive <= 1:
                        break
                    if not fresh:
                        hits += matched // block * block
                        fresh = 1
                        alive -= 1
                matched += part_tokens
        hits += alive * (matched // block * block)
        # The last token is always computed: its logits begin the answer.
        most = count * ((path.tokens if prompt is None else prompt) - 1)
        return float(min(hits, max(0, most)))

    def insert(self, engine: EngineState, item: int, first: int, count: int, prompt: int) -> None:
        position, g = divmod(item, self.G)
        path = self.compiled.paths[position]
        assert path is not None
        cache = engine.cache
        stride = self.G + 1
        end = first + count
        for node, part_tokens, per_row in reversed(path.nodes):
            if not part_tokens:
                continue
            if per_row:
                cache.put(node * stride + g + 1, first, end, part_tokens)
            else:
                cache.put(node * stride, 0, 1, part_tokens)
        limit = engine.capacity_tokens - engine.outputs_tokens
        if cache.tokens > limit:
            cache.shrink(limit)

    def fetch(
        self, engine: EngineState, item: int, first: int, count: int, unshared: float
    ) -> tuple[float, float, bool]:
        """Tokens that come from the host tier or another worker because that is cheaper than to
        compute them: (tokens, seconds, from the host)."""
        host = engine.cache.host_tokens > 0
        link = self.link
        if (not host and link is None) or unshared <= count:
            return 0.0, 0.0, True
        timer = engine.spec.timer
        best = (0.0, 0.0, True)
        best_saving = 0.0
        compute_s = timer.step_s(int(unshared), 0, 0, 0)
        if host:
            found = min(self._found_on_host(engine, item, first, count), unshared - count)
            if found > 0:
                seconds = found * engine.spec.host_reload_s_per_token
                saving = compute_s - timer.step_s(int(unshared - found), 0, 0, 0) - seconds
                if saving > best_saving:
                    best, best_saving = (found, seconds, True), saving
        if link is not None:
            here = self.hits(engine, item, first, count)
            for other in self.workers:
                source = other.engines.get(engine.model)
                if source is None or source is engine or source.state != RESIDENT:
                    continue
                found = min(self.hits(source, item, first, count) - here, unshared - count)
                if found <= 0:
                    continue
                seconds = link.transfer_s(found * engine.spec.kv_bytes_per_token)
                saving = compute_s - timer.step_s(int(unshared - found), 0, 0, 0) - seconds
                if saving > best_saving:
                    best, best_saving = (found, seconds, False), saving
        return best

    def _found_on_host(self, engine: EngineState, item: int, first: int, count: int) -> float:
        position, g = divmod(item, self.G)
        path = self.compiled.paths[position]
        assert path is not None
        cache = engine.cache
        stride = self.G + 1
        end = first + count
        tokens = 0.0
        for node, part_tokens, per_row in path.nodes:
            key = node * stride + (g + 1 if per_row else 0)
            low, high = (first, end) if per_row else (0, 1)
            held = cache.overlap(key, low, high)
            if held >= high - low:
                continue
            rows = cache.host_overlap(key, low, high)
            if not rows:
                break
            tokens += part_tokens * (rows if per_row else count)
        return tokens
