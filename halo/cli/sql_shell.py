"""The SQL shell: `halo sql` without a statement, on a terminal.

Statements end with a semicolon and may take several lines. Tables that statements create live in
the database of --db, or in a temporary one until the shell ends.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from halo.ai_sql.batch import SqlBatch, SqlOptions
from halo.ai_sql.errors import nearest
from halo.ai_sql.results import FORMATS, RowFailure
from halo.cli.sql import exit_code, print_results, say_end
from halo.config import Config
from halo.errors import HaloError
from halo.progress import Reporter
from halo.session import Session

PROMPT, MORE = "halo> ", "  ... "
HISTORY_LINES = 2000

QUIT = (".quit", ".exit")
COMMANDS = (
    ".help", ".explain", ".models", ".tables", ".errors", ".analyze", ".mode", ".read", *QUIT,
)  # fmt: skip
HELP = """\
Statements end with ;      several at once are one batch
.explain SQL;              the plan of a statement, without running it
.models                    the default model, and the local ones
.tables                    tables and columns of the database
.errors                    calls without an answer, of the last batch that made any
.analyze                   the last batch: estimate beside actual
.mode table|json|jsonl|csv how results are printed (now: {mode})
.read FILE                 run the statements of a file
.help  .quit"""


class Shell:
    """One interactive session. `read` gives a line for a prompt; tests give their own."""

    def __init__(
        self, config: Config, options: SqlOptions, read: Callable[[str], str] | None = None
    ) -> None:
        self._scratch = tempfile.mkdtemp(prefix="halo-shell-")
        if config.db is None:
            config = config.model_copy(update={"db": self._new_database()})
        self._session = Session(config)
        self._options = options
        self._read = read or self._line
        self._mode = "table"
        self._failures: list[RowFailure] = []
        self._analysis = ""

    def run(self) -> int:
        """Read and run until the end of input; returns the exit code."""
        self._load_history()
        print("halo sql: statements end with ; and .help tells more")
        try:
            while True:
                try:
                    text = self._statement()
                except EOFError:
                    print()
                    return 0
                except KeyboardInterrupt:
                    print("^C")
                    continue
                if text in QUIT:
                    return 0
                self.execute(text)
        finally:
            self.close()

    def close(self) -> None:
        """Keep the history; give back what the shell holds."""
        self._save_history()
        self._session.close()
        shutil.rmtree(self._scratch, ignore_errors=True)

    def execute(self, text: str) -> int:
        """Run one input: statements, or a command. Errors are printed."""
        try:
            if text.startswith("."):
                self._command(text)
                return 0
            return self._run(text)
        except HaloError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return 130

    # --- input -----------------------------------------------------------------------------------

    def _statement(self) -> str:
        lines: list[str] = []
        while True:
            line = self._read(MORE if lines else PROMPT)
            word = line.strip()
            if not lines and (not word or word.startswith(".") or _is_word(word)):
                if word:
                    return word if word.startswith(".") else f".{word.rstrip(';').lower()}"
                continue
            lines.append(line)
            text = "\n".join(lines)
            if is_whole(text):
                return text

    def _line(self, prompt: str) -> str:
        return input(prompt)

    # --- running ---------------------------------------------------------------------------------

    def _run(self, text: str) -> int:
        options = replace(self._options, errors=self._failures)
        with SqlBatch(text, self._session, options) as batch:
            for warning in batch.warnings:
                print(f"warning: {warning}", file=sys.stderr)
            for plan in batch.explanations():
                print(plan)
            with Reporter(sys.stderr) as reporter:
                results = batch.run(on_progress=reporter.show, announce=reporter.say)
            for name, value in batch.settings.items():
                self._options = replace(
                    self._options, settings={**self._options.settings, name: value}
                )
            if batch.last_run is None:
                return 0
            if any(
                each.calls for each in batch.compiled
            ):  # else those before are what is asked for
                self._failures = [failure for result in results for failure in result.errors]
            self._analysis = batch.last_run.explain()
            if results:
                print_results(batch, results, format=self._mode, json_out=False)
            else:
                say_end(batch, results)
            return exit_code(batch, results)

    def _command(self, text: str) -> None:
        name, _, rest = text.partition(" ")
        rest = rest.strip()
        match name:
            case ".help":
                print(HELP.format(mode=self._mode))
            case ".explain":
                with SqlBatch(rest, self._session, self._options) as batch:
                    print(batch.explain())
            case ".models":
                self._models()
            case ".tables":
                self._tables()
            case ".errors":
                for failure in self._failures:
                    print(f"{failure.query} {failure.function} {failure.error_class}: "
                          f"{failure.message}")  # fmt: skip
                if not self._failures:
                    print("every call of the last batch has an answer")
            case ".analyze":
                print(self._analysis or "nothing has run yet")
            case ".mode" if rest in FORMATS and rest != "parquet":
                self._mode = rest
            case ".mode" if not rest:
                print(self._mode)
            case ".mode":
                raise HaloError(f"no mode {rest!r}; the modes are: table, json, jsonl, csv")
            case ".read" if not rest:
                raise HaloError("say which file: .read FILE")
            case ".read":
                try:
                    script = Path(rest).read_text("utf-8")
                except OSError as error:
                    raise HaloError(f"{rest} cannot be read: {error.strerror}") from None
                self._run(script)
            case _:
                raise HaloError(f"no command {name!r}.{nearest(name, COMMANDS)} .help lists them")

    def _models(self) -> None:
        config = self._session.config
        default = self._options.settings.get("model") or config.model
        print(f"engine {config.engine}, model {default or 'chosen by the engine'}")
        if config.engine == "local":
            from halo.cli.models import list_models

            list_models(json_out=False)

    def _tables(self) -> None:
        from runtime.sql_connection import describe

        assert self._session.config.db is not None
        found = describe(self._session.config.db)
        print(found or "no tables")

    def _new_database(self) -> Path:
        import duckdb

        path = Path(self._scratch) / "shell.duckdb"
        duckdb.connect(path).close()
        return path

    # --- history ---------------------------------------------------------------------------------

    def _load_history(self) -> None:
        try:
            import readline
        except ImportError:  # not on every platform
            return
        path = history_file()
        if path.exists():
            readline.read_history_file(path)
        readline.set_history_length(HISTORY_LINES)

    def _save_history(self) -> None:
        try:
            import readline
        except ImportError:
            return
        if not sys.stdin.isatty():
            return
        path = history_file()
        path.parent.mkdir(parents=True, exist_ok=True)
        readline.write_history_file(path)


def _is_word(line: str) -> bool:
    """A command as other shells have it, which is no statement."""
    return line.rstrip(";").lower() in ("quit", "exit", "help")


def history_file() -> Path:
    """Where the shell keeps what was typed."""
    base = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path(base) / "halo" / "sql_history"


def is_whole(text: str) -> bool:
    """Whether an input ends with a semicolon that is no part of a text or comment."""
    import sqlglot
    from sqlglot.errors import SqlglotError

    if not text.rstrip().endswith(";") and ";" not in text:
        return False
    try:
        tokens = sqlglot.tokenize(text, read="duckdb")
    except SqlglotError:
        return False  # an open text or comment
    return bool(tokens) and tokens[-1].token_type.name == "SEMICOLON"
