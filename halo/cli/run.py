"""`halo run` and `halo resume`."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import Any

from halo.config import load_config
from halo.dsl.workflow import user_line
from halo.errors import HaloError, RunDirectoryError, WorkflowError
from halo.load import load_flow
from halo.planning import Prepared
from halo.progress import Reporter
from halo.result import RunResult
from halo.rows import read_rows
from halo.session import Session
from runtime.run_directory import RunDirectory


def run(
    flows: list[str],
    rows: str,
    *,
    out: Path | None,
    config_file: Path | None,
    flags: dict[str, Any],
    dry_run: bool,
    json_out: bool,
    sample: int = 0,
) -> int:
    """Plan and run; returns the exit code."""
    config, _ = load_config(flags, file=config_file)
    with Session(config) as session:
        prepared = prepare(session, flows, rows)
        if sample:
            prepared = session.learn(prepared, sample, Reporter(sys.stderr).say)
        if dry_run:
            print(session.explain_prepared(prepared))
            return 0
        asked = {
            "flows": [_absolute(flow) for flow in flows],
            "input": str(Path(rows).absolute()),
        }
        return _execute(session, prepared, out=out, resume=False, asked=asked, json_out=json_out)


def resume(directory: Path, *, json_out: bool, flags: dict[str, Any]) -> int:
    """Continue the run in `directory` from its manifest; a budget counts anew."""
    from halo.ai_sql.batch import part_directories

    # Of a batch of SQL in several parts, each has a run directory of its own.
    begun = next(iter(part_directories(directory)), directory)
    manifest = RunDirectory.open(begun).manifest
    if "sql" in manifest:
        from halo.cli import sql

        return sql.resume(directory, manifest, json_out=json_out, flags=flags)
    if "flows" not in manifest:
        raise RunDirectoryError(
            f"{directory} was started from Python with objects that no file names; continue it "
            "with halo.run(workflow, rows, out=DIR, resume=True)"
        )
    config, _ = load_config({**manifest["config"], **flags})
    with Session(config) as session:
        prepared = prepare(session, manifest["flows"], manifest["input"])
        return _execute(
            session, prepared, out=directory, resume=True, asked=None, json_out=json_out
        )


def prepare(session: Session, flows: list[str], rows: str) -> Prepared:
    """The planned batch of `flows`, each over the same rows."""
    row_set = read_rows(rows)
    loaded = [load_flow(flow) for flow in flows]
    try:
        return session.prepare([(flow, row_set) for flow in loaded])
    except HaloError:
        raise
    except Exception as error:
        place = user_line(error)
        if not place:
            raise
        raise WorkflowError(
            f"{place}: {type(error).__name__}: {error} (while the workflow was traced: it runs "
            "once, with lazy values, to record its plan)"
        ) from error


def _execute(
    session: Session,
    prepared: Prepared,
    *,
    out: Path | None,
    resume: bool,
    asked: dict[str, Any] | None,
    json_out: bool,
) -> int:
    # A termination request drains like Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with Reporter(sys.stderr) as reporter:
        result = session.run_prepared(
            prepared,
            out=out,
            resume=resume,
            on_progress=reporter.show,
            announce=reporter.say,
            asked=asked,
        )
    if json_out:
        print(json.dumps(_document(result), ensure_ascii=False))
    elif out is None:
        for outcome in result:
            if outcome.error is None:
                print(json.dumps(outcome.value, ensure_ascii=False))
    _say_end(result)
    if result.stopped:
        return 4 if result.budget_reached else 130
    return 3 if result.errors else 0


def _document(result: RunResult) -> dict[str, Any]:
    return {
        **result.summary(),
        "errors": [
            {"query": o.query, "row": o.row_index, "type": o.error.type, "message": o.error.message}
            for o in result.errors
            if o.error
        ],
    }


def _say_end(result: RunResult) -> None:
    for outcome in result.errors[:10]:
        if outcome.error:
            print(
                f"row {outcome.row_index} of {outcome.query}: {outcome.error.type}: "
                f"{outcome.error.message}",
                file=sys.stderr,
            )
    if len(result.errors) > 10:
        where = f"{result.out}/errors.jsonl" if result.out else "the --json output"
        print(f"... and {len(result.errors) - 10} more failed rows, in {where}", file=sys.stderr)
    if result.stopped:
        print(f"stopped: {result.stopped}", file=sys.stderr)
    if result.out:
        verb = "halo resume" if result.stopped else "halo report"
        print(f"run directory: {result.out}  ({verb} {result.out})", file=sys.stderr)


def _absolute(flow: str) -> str:
    path, colon, name = flow.rpartition(":")
    if colon and path.endswith(".py"):
        return f"{Path(path).absolute()}:{name}"
    return str(Path(flow).absolute())
