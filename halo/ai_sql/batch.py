"""A batch of SQL: read, compiled into one plan, explained or run.

`SqlBatch` is what the command line, `halo.sql`, the shell and the notebook magic have in common.
"""

from __future__ import annotations

import itertools
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from halo.ai_sql.access import Access, OpenDatabase, file_literals, open_database
from halo.ai_sql.chunking import chunks
from halo.ai_sql.compile import RULES, UNSAFE_RULES, Compiled, Setting, compile_statement
from halo.ai_sql.documents import document_tool
from halo.ai_sql.ended import (
    ERRORS,
    ended_run,
    has_begun,
    kept_identity,
    part_directory,
    take_back,
)
from halo.ai_sql.errors import SqlError, nearest
from halo.ai_sql.options import wrong_setting
from halo.ai_sql.results import QueryResult, RowFailure
from halo.ai_sql.sampling import Sampler
from halo.ai_sql.statements import Statement, read_batch
from halo.engines import Announce
from halo.flow import Flow
from halo.loop_thread import OnProgress
from halo.planning import Prepared
from halo.result import RunResult
from halo.rows import RowSet
from halo.session import Session
from planner.explain import explain_physical
from planner.learnt import NOTHING_LEARNT, Learnt
from planner.logical import Effect, SqlRows
from runtime.records import Outcome
from runtime.run_directory import RunDirectory
from runtime.sql_session import SqlSession
from runtime.tools import ToolSpec

SETTINGS = ("ai_model", "ai_on_error", "ai_max_tokens", "ai_temperature")
"""What SET may set; each is the default of the option of that name."""

_NO_ROWS = RowSet("none", (), [], "sql")


@dataclass(frozen=True)
class SqlOptions:
    """What a batch is run with besides its text.

    Attributes:
        parameters: values of `$name`.
        tables: data frames or lists of objects that statements may read, by name.
        workflows: what AI_RUN may call.
        allow: directories whose files statements may read.
        off: rules to leave out, by name; `on`: unsafe rules to use.
        errors: of earlier batches, which the table `halo_errors` holds.
        settings: defaults of options that an earlier SET gave, by option.
        sample: inputs of each call that are asked first, to plan the rest by what they teach.
        resumed: the batch goes on with a run, so what it writes may be there already.
    """

    parameters: Mapping[str, Any] = field(default_factory=dict[str, Any])
    tables: Mapping[str, Any] = field(default_factory=dict[str, Any])
    workflows: Sequence[Flow] = ()
    allow: Sequence[Path] = ()
    off: Sequence[str] = ()
    on: Sequence[str] = ()
    errors: Sequence[RowFailure] = ()
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])
    sample: int = 0
    resumed: bool = False


class SqlBatch:
    """One text, opened: its statements compiled, its database locked. A context manager.

    Raises `SqlError` while it is made, before any model is loaded.
    """

    def __init__(self, text: str, session: Session, options: SqlOptions | None = None) -> None:
        self.text = text
        self._session = session
        self._options = options or SqlOptions()
        self.statements = read_batch(text, self._options.parameters)
        self._rules = _rules(self._options)
        self.settings = dict(self._options.settings)
        self._learnt = NOTHING_LEARNT
        self._sampler = Sampler(session, self._options.sample)
        self.database = self._open()
        try:
            compiled = self._compile()
            self.explained = [each for each in compiled if _is_explained(each)]
            self.compiled = [each for each in compiled if not _is_explained(each)]
            self.runs: list[RunResult] = []
            self._parts = _parts(self.compiled, _views(self.database))
            self.prepared = [self._prepare(part) for part in self._parts]
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> SqlBatch:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the database; results can no longer be read."""
        self._sampler.close()
        self.database.close()

    def explanations(self) -> list[str]:
        """The plans that EXPLAIN asks for, one for each statement that it stands before."""
        found: list[str] = []
        for each in self.explained:
            explain = each.statement.explain
            if explain is not None:
                prepared = self._sampled([each], self._prepare([each]))
                found.append(self._session.explain_prepared(prepared, format=explain.format))
        return found

    def analyses(self) -> list[str]:
        """What EXPLAIN ANALYZE asks for: the plan of what has run, estimate beside actual, in the
        format of each."""
        return [
            explain_physical(run.plan, run.stats, metrics=run.metrics, format=explain.format)
            for each in self.compiled
            for run in self.runs
            if (explain := each.statement.explain) is not None and each.name in run.outcomes
        ]

    @property
    def last_run(self) -> RunResult | None:
        """The run of the last part that has run."""
        return self.runs[-1] if self.runs else None

    def _prepare(self, compiled: Sequence[Compiled]) -> Prepared:
        return self._session.prepare(
            [(each, _NO_ROWS) for each in compiled],
            count_rows=self._count_rows,
            learnt=self._learnt,
        )

    def _sampled(
        self, compiled: Sequence[Compiled], prepared: Prepared, announce: Announce | None = None
    ) -> Prepared:
        """The statements planned again by what a sample teaches, if one is asked for."""
        if not self._sampler.wanted:
            return prepared
        found = self._sampler.learn(prepared, self.database, announce)
        self._learnt += found
        return self._prepare(compiled) if found.ops else prepared

    def _as_begun(self, compiled: Sequence[Compiled], part: Path) -> Prepared:
        """The statements planned as they were when the run in `part` began."""
        self._learnt = Learnt.from_json(RunDirectory.open(part).manifest["learnt"])
        return self._prepare(compiled)

    def _ended_before(self, prepared: Prepared, part: Path) -> list[QueryResult]:
        """The results of the run in `part`, which had ended before the part behind it began."""
        run = ended_run(prepared, part)
        self.runs.append(run)
        found = [
            self._result(each, run, str(part)) for each in self.compiled if self._ended(each, run)
        ]
        take_back(found, part, self.database)
        return found

    def _count_rows(self, op: SqlRows) -> int | None:
        """Rows of a harvest that waits for no answer: DuckDB counts them while planning, so that
        EXPLAIN knows how many calls there are to make."""
        import duckdb

        written = {each.statement.target for each in self.compiled if each.statement.target}
        if op.tables or op.into or not op.read_only or any(w in op.text.lower() for w in written):
            return None
        try:
            counted = self.database.planning.sql(f"SELECT count(*) FROM ({op.text})").fetchall()
        except duckdb.Error:
            return None  # it will fail, and say why, when it runs
        return int(counted[0][0])

    @property
    def warnings(self) -> list[str]:
        return [
            f"{each.name}: {warning}"
            for each in self.compiled
            for warning in (*each.warnings, *self._lost_by(each))
        ]

    def _lost_by(self, compiled: Compiled) -> tuple[str, ...]:
        """What to know of a table that goes with the batch, when no statement of it reads it."""
        name = compiled.statement.target
        later = self.compiled[self.compiled.index(compiled) + 1 :]
        kept = self._session.config.db is not None
        if not name or kept or any(name in each.statement.text.lower() for each in later):
            return ()
        return (
            f"the table {name!r} is in memory and goes with this batch; --db FILE keeps it (in "
            "Python: a session with db=FILE)",
        )

    def explain(
        self, *, stage: str = "physical", format: str = "text", verbose: bool = False
    ) -> str:
        """The plan of the batch. Makes no call but those of a sample, if one is asked for: of the
        statements that wait for no write of the batch."""
        if self.prepared:
            self.prepared[0] = self._sampled(self._parts[0], self.prepared[0])
        plans = [
            self._session.explain_prepared(each, stage=stage, format=format, verbose=verbose)
            for each in self.prepared
        ]
        return "\n".join(plans) or "nothing to run"

    def run(
        self,
        *,
        out: Path | None = None,
        resume: bool = False,
        run_id: str = "",
        asked: Mapping[str, Any] | None = None,
        on_progress: OnProgress | None = None,
        announce: Announce | None = None,
    ) -> list[QueryResult]:
        """Run the batch; one result for each statement, in order.

        Raises `SqlError` for a statement that failed (an AI function with on_error := 'fail', an
        error of DuckDB): the others of the batch have run. With `out`, results and errors are
        written there.
        """
        database = self.database
        self.runs = []
        identity = run_id or (kept_identity(out) if resume and out is not None else "")
        identity = identity or secrets.token_hex(8)
        results: list[QueryResult] = []
        for number, compiled in enumerate(self._parts, 1):
            # A statement that reads what another of the batch writes comes in a later part.
            several = out is not None and len(self.prepared) > 1
            part = part_directory(out, number) if out is not None and several else out
            if resume and part is not None and has_begun(part):
                prepared = self._as_begun(compiled, part)
                if out is not None and has_begun(part_directory(out, number + 1)):
                    results += self._ended_before(prepared, part)
                    continue
            else:
                prepared = self._sampled(compiled, self.prepared[number - 1], announce)
            run = self._session.run_prepared(
                prepared,
                out=part,
                resume=resume,
                on_progress=on_progress,
                announce=announce,
                asked={
                    **(asked or {}),
                    "run_id": identity,
                    "parts": len(self._parts),
                    "learnt": self._learnt.to_json(),
                },
                sql=SqlSession(
                    database.running,
                    database.results,
                    database.marks if out else "",
                    # Two parts may hold the same write, which is to happen twice.
                    f"{identity}/{number}",
                ),
                cache=self._sampler.cache,
            )
            self.runs.append(run)
            found = [
                self._result(each, run, str(part or identity))
                for each in self.compiled
                if self._ended(each, run)
            ]
            results += found
            if part is not None and not run.stopped:
                self._export(part, found)
            if run.stopped or (self.failures and number < len(self.prepared)):
                break
        return results

    def nothing_to_return(self) -> SqlError:
        """Why there is no result: the batch has EXPLAIN and SET alone, or was interrupted."""
        stopped = self.last_run.stopped if self.last_run is not None else ""
        if stopped:
            return SqlError("S501", f"the run was stopped before its results: {stopped}")
        return SqlError(
            "S006",
            "the text has no statement with a result; the command halo sql 'EXPLAIN ...' prints a "
            "plan, and so does the explain() of a result",
        )

    @property
    def failures(self) -> list[SqlError]:
        """The statements that failed when the batch ran, each with its reason."""
        return [
            SqlError("S500", f"statement {each.statement.number} failed: {_reason(each, outcome)}")
            for each in self.compiled
            for run in self.runs
            for outcome in run.outcomes.get(each.name, ())
            if outcome.error is not None
        ]

    # --- making ----------------------------------------------------------------------------------

    def _open(self) -> OpenDatabase:
        literals: list[str] = []
        for statement in self.statements:
            if statement.tree is not None:
                literals += file_literals(statement.tree)
        writes = any(each.kind in ("create", "insert") for each in self.statements)
        access = Access(
            database=self._session.config.db,
            writable=writes,
            directories=tuple(self._options.allow),
            literals=tuple(dict.fromkeys(literals)),
        )
        database = open_database(access, self._options.tables)
        _make_errors_table(database, self._options.errors)
        return database

    def _compile(self) -> list[Compiled]:
        config = self._session.config
        cursor = self.database.planning
        setting = Setting(
            self.text,
            cursor,
            model=config.model,
            rules=self._rules,
            knows_model=lambda name: True,
            check_model=self._check_model,
            context_tokens=self._session.context_tokens,
            workflows={flow.name: flow for flow in self._options.workflows},
            tools=self._tools(),
            aggregates=_aggregates(),
            options=self.settings,
            resumed=self._options.resumed,
        )
        compiled: list[Compiled] = []
        for statement in self.statements:
            if statement.kind == "set":
                self._set(setting, statement)
            else:
                compiled.append(compile_statement(statement, setting))
        return compiled

    def _set(self, setting: Setting, statement: Statement) -> None:
        name, value = statement.setting
        if name not in SETTINGS:
            raise SqlError(
                "S102", f"there is no setting {name!r}.{nearest(name, SETTINGS)} The settings are: "
                f"{', '.join(SETTINGS)}", text=self.text, offset=statement.offset,
            )  # fmt: skip
        if name == "ai_model" and (reason := self._check_model(str(value))):
            raise SqlError("S106", reason, text=self.text, offset=statement.offset)
        if wanted := wrong_setting(name, value):
            raise SqlError(
                "S103", f"{name!r} is {value!r}; it must be {wanted}",
                text=self.text, offset=statement.offset,
            )  # fmt: skip
        setting.options[name.removeprefix("ai_")] = value

    def _check_model(self, name: str) -> str:
        return self._session.why_not_model(name)

    def _tools(self) -> dict[str, ToolSpec]:
        from halo.ai_sql.embedding import embed_tool

        text = {"type": "string"}
        number = {"type": "integer"}
        made = (
            document_tool(Path.cwd(), tuple(self._options.allow)),
            embed_tool(self._session.config),
            ToolSpec(
                "halo_chunk",
                chunks,
                "Cuts a text into chunks.",
                {
                    "type": "object",
                    "properties": {"text": text, "tokens": number, "overlap": number},
                    "required": ["text"],
                },
                effect=Effect.PURE,
                version="1",
            ),
        )
        return {tool.name: tool for tool in made}

    # --- results ---------------------------------------------------------------------------------

    def _ended(self, compiled: Compiled, run: RunResult) -> bool:
        outcomes = run.outcomes.get(compiled.name, ())
        return any(outcome.error is None for outcome in outcomes)

    def _result(self, compiled: Compiled, run: RunResult, run_id: str) -> QueryResult:
        outcome = next(o for o in run.outcomes[compiled.name] if o.error is None)
        value = outcome.value
        count = value["rows"] if isinstance(value, dict) else 0
        assert isinstance(count, int)
        reads = compiled.statement.kind == "select"
        return QueryResult(
            name=compiled.name,
            columns=tuple(name for name, _ in compiled.columns) if reads else (),
            types=tuple(kind for _, kind in compiled.columns) if reads else (),
            run=run,
            database=self.database,
            written=None if reads else count,
            errors=_failures_of(compiled, run, run_id),
            warnings=(*compiled.warnings, *self._lost_by(compiled)),
            n_rows=count if reads else 0,
        )

    def _export(self, out: Path, results: Sequence[QueryResult]) -> None:
        import json
        from dataclasses import asdict

        from runtime.atomic_file import replaced_path, replaced_text

        folder = out / "results"
        folder.mkdir(exist_ok=True)
        for result in results:
            if result.written is None:
                with replaced_path(folder / f"{result.name}.parquet") as aside:
                    result.write(aside, "parquet")
        with replaced_text(out / ERRORS) as file:
            for result in results:
                for failure in result.errors:
                    file.write(json.dumps(asdict(failure), ensure_ascii=False) + "\n")


def part_directories(out: Path) -> list[Path]:
    """The run directories of the parts that have begun, in order; none when the batch has one."""
    numbered = (part_directory(out, number) for number in itertools.count(1))
    return list(itertools.takewhile(has_begun, numbered))


def _parts(
    compiled: Sequence[Compiled], views: Mapping[str, str] | None = None
) -> list[list[Compiled]]:
    """The statements that may run together: one that names a table (or a file of COPY) which an
    earlier one writes starts another part, and so does one that writes what an earlier one names.
    `views`: what a view that is named names, by the name of the view."""
    parts: list[list[Compiled]] = []
    written: set[str] = set()
    named = ""
    for each in compiled:
        text = _with_views(each.statement.text.lower(), views or {})
        target = each.statement.written
        if not parts or any(name in text for name in written) or (target and target in named):
            parts.append([])
            written, named = set[str](), ""
        parts[-1].append(each)
        named += f"\n{text}"
        if target:
            written.add(target)
    return parts


def _views(database: OpenDatabase) -> dict[str, str]:
    """The texts of the views of the database by name, in lower case."""
    found = database.planning.sql(
        "SELECT lower(view_name), lower(sql) FROM duckdb_views() WHERE NOT internal"
    ).fetchall()
    return {str(name): str(text) for name, text in found}


def _with_views(text: str, views: Mapping[str, str]) -> str:
    """A text and those of the views that it names, directly or through others."""
    left = dict(views)
    while found := [name for name in left if name in text]:
        text = "\n".join([text, *(left.pop(name) for name in found)])
    return text


def _reason(compiled: Compiled, outcome: Outcome) -> str:
    """Why a statement failed; without tables and places of a text that nobody has written."""
    assert outcome.error is not None
    if not compiled.calls:
        return outcome.error.message
    message = outcome.error.message.partition("\n\nLINE ")[0]
    nameless = r"([\d,]+) rows? of table 'halo_\w+' could not be computed"
    return re.sub(nameless, r"calls without an answer: \1", message)


def _is_explained(compiled: Compiled) -> bool:
    explain = compiled.statement.explain
    return explain is not None and not explain.analyze


def _failures_of(compiled: Compiled, run: RunResult, run_id: str) -> list[RowFailure]:
    # As the plan was run: merging and rewriting change what operators are.
    users = run.plan.logical.users
    mine = {op.fingerprint for op, names in users.items() if compiled.name in names}
    found = {
        (each.op, each.row_key): RowFailure(
            run_id, compiled.name, each.error.op, each.row_key, each.error.attempts,
            each.error.type, each.error.message,
        )
        for each in run.recovered
        if each.op in mine
    }  # fmt: skip
    return list(found.values())


def _make_errors_table(database: OpenDatabase, errors: Sequence[RowFailure]) -> None:
    for cursor in (database.planning, database.running):
        cursor.execute(
            "CREATE TEMP TABLE halo_errors (run VARCHAR, query VARCHAR, function VARCHAR, "
            "key VARCHAR, attempts INTEGER, error_class VARCHAR, message VARCHAR)"
        )
    if errors:
        database.running.executemany(
            "INSERT INTO halo_errors VALUES (?, ?, ?, ?, ?, ?, ?)",
            [
                (e.run, e.query, e.function, e.key, e.attempts, e.error_class, e.message)
                for e in errors
            ],
        )


@cache
def _aggregates() -> frozenset[str]:
    """The names of DuckDB's aggregates: the same in every process."""
    import duckdb

    with duckdb.connect(":memory:") as connection:
        rows = connection.execute(
            "SELECT DISTINCT function_name FROM duckdb_functions() "
            "WHERE function_type = 'aggregate'"
        ).fetchall()
    return frozenset(str(name) for (name,) in rows)


def _rules(options: SqlOptions) -> frozenset[str]:
    known = (*RULES, *UNSAFE_RULES)
    for name in (*options.off, *options.on):
        if name not in known:
            raise SqlError(
                "S005", f"there is no rule {name!r}.{nearest(name, known)} The rules are: "
                f"{', '.join(known)}",
            )  # fmt: skip
    return frozenset(RULES) - set(options.off) | set(options.on)
