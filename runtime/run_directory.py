"""The directory of a run: which files it has, who may write it, what was asked.

docs/run-directory.md describes every file. All files but the journal are replaced whole; the
journal is there from the first call on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, cast

from planner.logical import LogicalPlan, ModelOp
from runtime.atomic_file import replaced_text
from runtime.errors import RunDirectoryError
from runtime.run_lock import LockOwner, exclusive_lock, lock_owner

FORMAT_VERSION = 1
"""Of the directory as a whole; the journal has a schema version of its own."""

_FORMAT = "halo_run_directory"
_LOCK = "lock"
_MANIFEST = "manifest.json"


class RunDirectory:
    """One run on disk.

    Attributes:
        path: the directory.
        manifest: what was asked, as given to `create`.
    """

    def __init__(self, path: Path, manifest: Mapping[str, Any]) -> None:
        self.path = path
        self.manifest = dict(manifest)

    @classmethod
    def create(cls, path: Path, manifest: Mapping[str, Any]) -> RunDirectory:
        """A new run in `path`, which must be missing, empty, or left by a run that was killed
        before it began. Raises `RunDirectoryError`.

        `manifest` is JSON and free, but for three entries that status and report read when they
        are there: "rows" ({query: number of input rows}), "operators" (`describe_operators`) and
        "queries" (their order, a list of names).
        """
        try:
            path.mkdir(parents=True, exist_ok=True)
            _refuse_used(path)
            with exclusive_lock(path / _LOCK, "starting a run"):
                # Again, now that nobody else can be between looking and writing.
                _refuse_used(path)
                document = {_FORMAT: FORMAT_VERSION, **manifest}
                _write_json(path / _MANIFEST, document)
        except OSError as error:
            raise RunDirectoryError(f"cannot create the run directory {path}: {error}") from error
        return cls(path, manifest)

    @classmethod
    def open(cls, path: Path) -> RunDirectory:
        """The run in `path`. Raises `RunDirectoryError` when there is none or when a newer Halo
        wrote it."""
        manifest_file = path / _MANIFEST
        if not path.is_dir():
            raise RunDirectoryError(
                f"no run directory at {path}; `halo run ... --out {path}` makes one"
            )
        if not manifest_file.is_file():
            raise RunDirectoryError(
                f"{path} is not a run directory: it has no {_MANIFEST}; a directory that "
                "`halo run ... --out DIR` wrote is needed"
            )
        try:
            document: Any = json.loads(manifest_file.read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise RunDirectoryError(f"cannot read {manifest_file}: {error}") from error
        if not isinstance(document, dict) or _FORMAT not in document:
            raise RunDirectoryError(f"{path} is not a run directory: {manifest_file} is not Halo's")
        manifest = cast("dict[str, Any]", document)
        version = manifest.pop(_FORMAT)
        if not isinstance(version, int) or version > FORMAT_VERSION:
            raise RunDirectoryError(
                f"{path} was written by a newer Halo (format {version}, this Halo reads up to "
                f"{FORMAT_VERSION}); upgrade Halo to use it"
            )
        return cls(path, manifest)

    # --- files -----------------------------------------------------------------------------------

    @property
    def journal(self) -> Path:
        """The journal: SQLite, open it with `Journal` or `runtime.journal_reader`."""
        return self.path / "events.sqlite"

    @property
    def plan(self) -> Path:
        """The plan as JSON."""
        return self.path / "plan.json"

    @property
    def results(self) -> Path:
        """One line per row with a value."""
        return self.path / "results.jsonl"

    @property
    def results_parquet(self) -> Path:
        """The same as a table."""
        return self.path / "results.parquet"

    @property
    def errors(self) -> Path:
        """One line per failed row."""
        return self.path / "errors.jsonl"

    @property
    def trace(self) -> Path:
        """One line per recorded call."""
        return self.path / "trace.jsonl"

    def write_plan(self, plan: Mapping[str, Any]) -> None:
        """Write `plan.json`, whole or not at all."""
        _write_json(self.plan, plan)

    def read_plan(self) -> dict[str, Any]:
        """The content of `plan.json`. Raises `RunDirectoryError` when it is missing or broken."""
        try:
            return cast("dict[str, Any]", json.loads(self.plan.read_text("utf-8")))
        except (OSError, ValueError) as error:
            raise RunDirectoryError(f"cannot read {self.plan}: {error}") from error

    # --- who may write ---------------------------------------------------------------------------

    def lock(self, owner: str, *, started_at: str = "") -> AbstractContextManager[None]:
        """Hold the directory while the block runs. `owner` says what is done ("halo run"),
        `started_at` since when (ISO 8601 text). Raises `RunLockedError` naming who has it."""
        return exclusive_lock(self.path / _LOCK, owner, started_at)

    def locked_by(self) -> LockOwner | None:
        """Who holds the directory now; None when no run is under way."""
        return lock_owner(self.path / _LOCK)


def describe_operators(plan: LogicalPlan) -> dict[str, dict[str, str]]:
    """{fingerprint: {"label", "kind", "model"}} of every operator, nested ones included: the
    manifest's entry "operators", by which status and report name what the journal counts."""
    return {
        op.fingerprint: {
            "label": op.label,
            "kind": op.kind,
            "model": op.model if isinstance(op, ModelOp) else "",
        }
        for op in plan.walk_all()
    }


def _refuse_used(path: Path) -> None:
    if (path / _MANIFEST).exists():
        raise RunDirectoryError(
            f"{path} already holds a run; use `halo resume {path}` or another --out"
        )
    strange = sorted(
        entry.name for entry in path.iterdir() if entry.name not in (_LOCK, f"{_MANIFEST}.tmp")
    )
    if strange:
        raise RunDirectoryError(
            f"{path} is not empty and is not a run directory (it has {', '.join(strange[:3])}"
            f"{', ...' if len(strange) > 3 else ''}); choose another --out"
        )


def _write_json(path: Path, document: Mapping[str, Any]) -> None:
    with replaced_text(path) as file:
        json.dump(document, file, ensure_ascii=False, indent=2)
        file.write("\n")
