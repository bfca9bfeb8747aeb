"""Which model a worker has: when it changes, and what an idle worker loads ahead."""

from __future__ import annotations

from costmodel.simulator.result import Span
from costmodel.simulator.run_state import RunState
from costmodel.simulator.state import ABSENT, LOADING, RESIDENT, EngineState, WorkerState


class Residency(RunState):
    """Loads and switches of models."""

    def _wants_other_model(self, worker: WorkerState) -> bool:
        """With priority switching: whether the first ready item needs a model that is absent and
        that does not fit beside the resident ones."""
        if self.plan.switching != "priority" or worker.shared or len(worker.engines) < 2:
            return False
        best: tuple[float, int] | None = None
        wanted: EngineState | None = None
        for engine in worker.engines.values():
            self._clean(engine)
            if engine.queue and (best is None or engine.queue[0] < best):
                best, wanted = engine.queue[0], engine
        return wanted is not None and wanted.state == ABSENT

    def _load_models(self, worker: WorkerState) -> None:
        """Begin to load a model when one is wanted and may take the place."""
        if worker.loading or all(e.state == RESIDENT for e in worker.engines.values()):
            return
        wanted: EngineState | None = None
        best: tuple[float, int] | None = None
        for engine in worker.engines.values():
            if engine.state == ABSENT:
                self._clean(engine)
                if engine.queue and (best is None or engine.queue[0] < best):
                    best, wanted = engine.queue[0], engine
        if (wanted is None and self.plan.preload and not worker.active) or (
            wanted is not None and self.strict and not worker.shared
        ):
            wanted = self._next_model(worker)
        if wanted is None or wanted.state != ABSENT:
            return
        resident = [e for e in worker.engines.values() if e.state == RESIDENT]
        if not worker.shared:
            if worker.active or any(e.finish for e in resident):
                return
            hold = self._wants_other_model(worker)
            if not hold and not self.strict:
                for engine in resident:
                    self._clean(engine)
                    if engine.queue:
                        return
        seconds = wanted.spec.wake_s if wanted.was_loaded else wanted.spec.load_s
        if not worker.shared:
            for engine in resident:
                seconds += engine.spec.sleep_s
                engine.state = ABSENT
                worker.evicted += engine.cache.evicted_tokens
                engine.cache.evicted_tokens = 0.0
                engine.cache.clear()
        wanted.state = LOADING
        wanted.was_loaded = True
        worker.loading += 1
        worker.loads += 1
        worker.load_s += seconds
        if self.spans is not None:
            self.spans.append(
                Span(worker.spec.name, "load", wanted.model, -1, self.now, self.now + seconds)
            )
        self._push(self.now + seconds, 3, wanted, 0)
