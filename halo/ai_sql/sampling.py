"""Samples: some inputs of calls are asked first, and the batch is planned by what they teach.

What filters keep and what answers cost cannot be known before; a sample measures both, so that the
planner can put the filter first that drops most for its price. Its answers are not lost: the run
that follows takes them from a cache, so that a sample adds no call but those of sampled and fresh
ones.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from halo.ai_sql.access import OpenDatabase
from halo.ai_sql.errors import SqlError
from halo.engines import Announce
from halo.planning import Prepared
from halo.session import Session
from planner.learnt import NOTHING_LEARNT, Learnt
from planner.logical import ModelOp
from runtime.sql_session import SqlSession


class Sampler:
    """Takes the samples of one batch, of at most `n_inputs` inputs for each call; none with 0.
    `cache` is where their answers are: None for the place that is configured, or no sample."""

    def __init__(self, session: Session, n_inputs: int) -> None:
        self._session = session
        self._n_inputs = n_inputs
        self.cache: Path | None = None

    @property
    def wanted(self) -> bool:
        return self._n_inputs > 0

    def learn(
        self, prepared: Prepared, database: OpenDatabase, announce: Announce | None = None
    ) -> Learnt:
        """What the calls of a plan do over a sample. Statements that write are not run, nor is
        what keeps results. Raises `SqlError` when the sample was stopped."""
        if not any(isinstance(op, ModelOp) for op in prepared.plan.logical.walk_all()):
            return NOTHING_LEARNT
        if self.cache is None and self._session.config.cache is None:
            self.cache = Path(tempfile.mkdtemp(prefix="halo-sample-"))
        run = self._session.run_prepared(
            prepared,
            announce=announce,
            sql=SqlSession(database.running, database.results, sample_rows=self._n_inputs),
            cache=self.cache,
        )
        if run.stopped:
            raise SqlError("S501", f"the sample was stopped: {run.stopped}")
        if announce is not None:
            made = run.summary()["calls"]["made"]
            announce(f"sample: {made} calls, for at most {self._n_inputs} inputs of each")
        return Learnt.from_runs([(prepared.plan.logical, run.metrics)], "sampled")

    def close(self) -> None:
        """Drop the answers, unless they are kept in a configured cache."""
        if self.cache is not None:
            shutil.rmtree(self.cache, ignore_errors=True)
