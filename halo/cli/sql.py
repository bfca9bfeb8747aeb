"""`halo sql`."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from typer import BadParameter

from halo.ai_sql.batch import SqlBatch, SqlOptions, part_directories
from halo.ai_sql.errors import SqlRefusedError, nearest
from halo.ai_sql.results import FORMATS, QueryResult
from halo.ai_sql.table import print_table
from halo.config import Config, load_config
from halo.errors import HaloError, RunDirectoryError
from halo.load import load_flow
from halo.progress import Reporter
from halo.session import Session


def sql(
    words: Sequence[str],
    *,
    file: Path | None,
    out: Path | None,
    format: str,
    params: Sequence[str],
    workflows: Sequence[str],
    allow: Sequence[Path],
    config_file: Path | None,
    flags: dict[str, Any],
    dry_run: bool,
    json_out: bool,
    sample: int = 0,
    options: Sequence[str] = (),
) -> int:
    """Run SQL, or start the shell; returns the exit code. `words` are the text and the flags that
    name rules, in any order; `options` the flags that there are beside them."""
    text, rules = _text_and_flags(words)
    off, on = rule_names(rules, options)
    of_planner = {"off": _taken(off, ""), "on": _taken(on, "unsafe_")}
    flags = {**flags, **{name: rules for name, rules in of_planner.items() if rules}}
    config, _ = load_config(flags, file=config_file)
    settings = SqlOptions(
        parameters=dict(_parameter(each) for each in params),
        workflows=tuple(load_flow(each) for each in workflows),
        allow=tuple(allow),
        off=off,
        on=on,
        sample=sample,
    )
    if text is not None and file is not None:
        raise HaloError("give the SQL as an argument or with -f FILE, not both")
    if file is not None:
        text = _read(file)
    if text is None and sys.stdin.isatty():
        from halo.cli.sql_shell import Shell

        return Shell(config, settings).run()
    given = sys.stdin.read() if text is None else text
    if format not in FORMATS:
        raise HaloError(f"no format {format!r}; the formats are: {', '.join(FORMATS)}")
    asked: dict[str, Any] = {
        "sql": {
            "text": given,
            "parameters": dict(settings.parameters),
            "workflows": [_absolute(each) for each in workflows],
            "allow": [str(each.absolute()) for each in allow],
            "off": off,
            "on": on,
            "directory": str(Path.cwd()),
        }
    }
    return run_text(
        given, config, settings, out=out, format=format, dry_run=dry_run, json_out=json_out,
        asked=asked,
    )  # fmt: skip


def _text_and_flags(words: Sequence[str]) -> tuple[str | None, list[str]]:
    """A word that begins with a dash is a flag, unless it is a text that begins with a comment."""
    flags = [each for each in words if each.startswith("-") and len(each.split()) == 1]
    texts = [each for each in words if each not in flags]
    if len(texts) > 1 and not flags:
        raise BadParameter(f"the SQL is one text in quotes; beside it there is {texts[1]!r}")
    return (texts[0] if texts else None), flags


def resume(directory: Path, manifest: dict[str, Any], *, json_out: bool, flags: Any) -> int:
    """Continue a run of `halo sql --out`; `directory` is its own, or that of one of its parts."""
    if manifest.get("parts", 1) > 1 and not part_directories(directory):
        directory = directory.absolute().parent
    kept = manifest["sql"]
    if str(Path.cwd()) != kept["directory"]:
        raise RunDirectoryError(
            f"{directory} was started in {kept['directory']}, which its statements' file names are "
            "relative to; resume it there"
        )
    config, _ = load_config({**manifest["config"], **flags})
    options = SqlOptions(
        parameters=kept["parameters"],
        workflows=tuple(load_flow(each) for each in kept["workflows"]),
        allow=tuple(Path(each) for each in kept["allow"]),
        off=kept["off"],
        on=kept["on"],
        resumed=True,
    )
    return run_text(
        kept["text"], config, options, out=directory, format="table", dry_run=False,
        json_out=json_out, asked=None, run_id=manifest.get("run_id", ""),
    )  # fmt: skip


def run_text(
    text: str,
    config: Config,
    options: SqlOptions,
    *,
    out: Path | None,
    format: str,
    dry_run: bool,
    json_out: bool,
    asked: dict[str, Any] | None,
    run_id: str = "",
) -> int:
    """Run one batch and print its results."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with Session(config) as session, SqlBatch(text, session, options) as batch:
            for warning in batch.warnings:
                print(f"warning: {warning}", file=sys.stderr)
            if dry_run:
                print(batch.explain())
                return 0
            for plan in batch.explanations():
                print(plan)
            with Reporter(sys.stderr) as reporter:
                results = batch.run(
                    out=out, resume=asked is None, run_id=run_id, asked=asked,
                    on_progress=reporter.show, announce=reporter.say,
                )  # fmt: skip
            print_results(batch, results, format=format, json_out=json_out)
            return exit_code(batch, results)
    except SqlRefusedError as error:
        print(f"error: {error}", file=sys.stderr)
        return 5


def print_results(
    batch: SqlBatch, results: Sequence[QueryResult], *, format: str, json_out: bool
) -> None:
    """Results on standard output; errors and the summary on standard error."""
    shown = [each for each in results if not _is_analyzed(batch, each)]
    if json_out:
        print(json.dumps(_document(batch, results), ensure_ascii=False, default=str))
    elif format == "table":
        for result in shown:
            print_table(result)
    elif format == "parquet" and len(shown) > 1:
        raise HaloError("several results in one Parquet stream; use --out DIR")
    else:
        sys.stdout.flush()
        for number, result in enumerate(each for each in shown if each.written is None):
            if number and format == "csv":
                sys.stdout.buffer.write(b"\n")
            result.stream(format, sys.stdout.buffer)
        sys.stdout.buffer.flush()
    if not json_out:
        for analysis in batch.analyses():
            print(analysis)
    say_end(batch, results)


def say_end(batch: SqlBatch, results: Sequence[QueryResult]) -> None:
    """What failed and what it cost, on standard error."""
    failures = [failure for result in results for failure in result.errors]
    for failure in failures[:5]:
        print(
            f"{failure.query} {failure.function}: {failure.error_class}: {failure.message}",
            file=sys.stderr,
        )
    if len(failures) > 5:
        print(f"... and {len(failures) - 5} more calls without an answer", file=sys.stderr)
    for error in batch.failures:
        print(f"error: {error}", file=sys.stderr)
    if not batch.runs:
        return
    made, shared, replayed = (
        sum(run.summary()["calls"][kind] for run in batch.runs)
        for kind in ("made", "shared", "replayed")
    )
    elapsed_s = sum(run.elapsed_s for run in batch.runs)
    print(
        f"{made} calls ({shared} shared, {replayed} replayed) in {elapsed_s:.1f} s",
        file=sys.stderr,
    )
    for run in batch.runs:
        if run.stopped:
            print(f"stopped: {run.stopped}", file=sys.stderr)
        if run.out:
            verb = "halo resume" if run.stopped else "halo report"
            print(f"run directory: {run.out}  ({verb} {run.out})", file=sys.stderr)


def exit_code(batch: SqlBatch, results: Sequence[QueryResult]) -> int:
    """0, 3 with calls without an answer or failed statements, 4 at the budget, 130 stopped."""
    run = batch.last_run
    if run is not None and run.budget_reached:
        return 4
    if run is not None and run.stopped:
        return 130
    if batch.failures:
        return 1 if len(batch.failures) == len(batch.compiled) else 3
    return 3 if any(result.errors for result in results) else 0


def rule_names(flags: Sequence[str], options: Sequence[str] = ()) -> tuple[list[str], list[str]]:
    """The rules of `--no-NAME` and `--unsafe-NAME` flags. `options` are those that there are beside
    them."""
    off: list[str] = []
    on: list[str] = []
    for flag in flags:
        if flag.startswith("--no-"):
            off.append(flag.removeprefix("--no-"))
        elif flag.startswith("--unsafe-"):
            on.append(flag.removeprefix("--unsafe-"))
        else:
            raise BadParameter(f"there is no option {flag!r}.{nearest(flag, options)}".rstrip("."))
    return off, on


def _taken(names: list[str], prefix: str) -> list[str]:
    """Those of `names` that are rules of the planner, taken out of `names`."""
    from planner.rules import RULES

    known = {rule.name for rule in RULES}
    found = {name: prefix + name.replace("-", "_") for name in names}
    taken = [rule for rule in found.values() if rule in known]
    names[:] = [name for name in names if found[name] not in known]
    return taken


def _is_analyzed(batch: SqlBatch, result: QueryResult) -> bool:
    return any(
        each.name == result.name and each.statement.explain is not None for each in batch.compiled
    )


def _document(batch: SqlBatch, results: Sequence[QueryResult]) -> dict[str, Any]:
    return {
        "results": [
            {
                "name": result.name,
                "columns": [
                    {"name": name, "type": kind}
                    for name, kind in zip(result.columns, result.types, strict=True)
                ],
                "rows": [list(row) for row in result.tuples()],
                "written": result.written,
            }
            for result in results
        ],
        "errors": [asdict(failure) for result in results for failure in result.errors],
        "failed": [str(error) for error in batch.failures],
        **(batch.last_run.summary() if batch.last_run is not None else {}),
    }


def _parameter(text: str) -> tuple[str, Any]:
    """`NAME=VALUE`: a value that is JSON is what it says, anything else is a text."""
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise HaloError(f"--param {text!r} is not NAME=VALUE")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def _read(file: Path) -> str:
    try:
        return file.read_text("utf-8")
    except OSError as error:
        raise HaloError(f"{file} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise HaloError(f"{file} cannot be read: {error}") from None


def _absolute(flow: str) -> str:
    path, colon, name = flow.rpartition(":")
    return f"{Path(path).absolute()}:{name}" if colon else str(Path(flow).absolute())
