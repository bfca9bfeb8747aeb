"""TOML profiles: every number with its unit in its name, a source and a grade.

A file states `source` and `grade` once; a number that comes from elsewhere is written as a table:

    source = "NVIDIA H200 data sheet"
    grade = "printed"
    memory_bytes = 141e9
    usable_memory_share = { value = 0.9, grade = "assumed", source = "a server's default" }

Reading is strict: a missing, misspelt, impossible or unused field is a `ProfileError` that names
the file and the field.
"""

from __future__ import annotations

import difflib
import math
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

from costmodel.errors import ProfileError
from costmodel.evidence import GRADES, Evidence, Grade

PROFILES = Path(__file__).parent / "profiles"

_T = TypeVar("_T", str, bool)


class ProfileReader:
    """Takes typed fields out of one table of a profile and notes their evidence.

    `evidence` is shared by the tables of a file: field names are unique within it, those of an
    inner table have its name in front (`moe.n_experts`).
    """

    def __init__(
        self,
        table: Mapping[str, Any],
        file: str,
        *,
        evidence: dict[str, Evidence],
        default: Evidence,
        prefix: str = "",
    ) -> None:
        self._table = dict(table)
        self._taken: set[str] = set()
        self._file = file
        self._prefix = prefix
        self._default = default
        self.evidence = evidence

    @classmethod
    def open(cls, path: Path) -> ProfileReader:
        """The top table of a profile file, with its `source` and `grade` taken."""
        try:
            with path.open("rb") as stream:
                table = tomllib.load(stream)
        except OSError as error:
            raise ProfileError(
                f"{path}: cannot read it: {error.strerror}", file=str(path)
            ) from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ProfileError(f"{path}: this is not TOML: {error}", file=str(path)) from error
        reader = cls(table, str(path), evidence={}, default=Evidence("assumed", ""))
        source = reader.text("source")
        reader._default = Evidence(reader._grade("grade", reader._take("grade", "printed")), source)
        return reader

    def error(self, field: str, problem: str) -> ProfileError:
        name = self._prefix + field
        return ProfileError(f"{self._file}: field {name!r} {problem}", file=self._file, field=name)

    def has(self, field: str) -> bool:
        return field in self._table

    def table(self, field: str) -> ProfileReader | None:
        """An inner table, or None when it is absent."""
        if field not in self._table:
            return None
        inner = self._take(field, None)
        if not isinstance(inner, dict):
            raise self.error(field, f"is {inner!r}; it must be a table")
        return ProfileReader(
            cast("dict[str, Any]", inner),
            self._file,
            evidence=self.evidence,
            default=self._default,
            prefix=f"{self._prefix}{field}.",
        )

    def fields(self) -> tuple[str, ...]:
        return tuple(self._table)

    def number(
        self,
        field: str,
        default: float | None = None,
        *,
        least: float = 0.0,
        above: float | None = None,
        most: float = math.inf,
    ) -> float:
        """A finite number in [least, most], or above `above`. A default is graded as assumed."""
        if field not in self._table:
            if default is None:
                raise self.error(field, "is missing; " + self._hint(field))
            self.evidence[self._prefix + field] = Evidence("assumed", "default of the cost model")
            return default
        value = self._sourced(field)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.error(field, f"is {value!r}; it must be a number")
        if not math.isfinite(value):
            raise self.error(field, f"is {value!r}; it must be finite")
        if above is not None and value <= above:
            raise self.error(field, f"is {value!r}; it must be above {above:g}")
        if value < least or value > most:
            bounds = f"at least {least:g}" if most == math.inf else f"from {least:g} to {most:g}"
            raise self.error(field, f"is {value!r}; it must be {bounds}")
        return float(value)

    def optional(self, field: str) -> float | None:
        """A number of at least 0, or None when it is absent."""
        return self.number(field) if self.has(field) else None

    def integer(self, field: str, default: int | None = None, *, least: int = 0) -> int:
        value = self.number(field, default, least=least)
        if value != int(value):
            raise self.error(field, f"is {value!r}; it must be a whole number")
        return int(value)

    def text(self, field: str, default: str | None = None) -> str:
        return self._typed(field, default, str, "a text")

    def boolean(self, field: str, default: bool | None = None) -> bool:
        return self._typed(field, default, bool, "true or false")

    def texts(self, field: str) -> tuple[str, ...]:
        """A list of texts; empty when absent."""
        value = self._take(field, [])
        if not isinstance(value, list):
            raise self.error(field, f"is {value!r}; it must be a list of texts")
        items = cast("list[object]", value)
        if not all(isinstance(item, str) for item in items):
            raise self.error(field, f"is {items!r}; it must be a list of texts")
        return tuple(str(item) for item in items)

    def curve(self, field: str) -> tuple[tuple[float, float], ...]:
        """Points (x, y) of a curve, x rising and y in (0, 1]; a single number is one point at 1."""
        if field not in self._table:
            raise self.error(field, "is missing; " + self._hint(field))
        value = self._sourced(field)
        points = cast("list[object]", value) if isinstance(value, list) else [[1, value]]
        found: list[tuple[float, float]] = []
        for point in points:
            pair = cast("list[object]", point) if isinstance(point, list) else []
            numbers = [float(v) for v in pair if isinstance(v, int | float)]
            if len(pair) != 2 or len(numbers) != 2:
                raise self.error(field, f"has the point {point!r}; a point is [tokens, share]")
            x, y = numbers
            if not 0 < y <= 1 or x < 1 or (found and x <= found[-1][0]):
                raise self.error(
                    field, f"has the point {point!r}; tokens must rise from 1, shares be in (0, 1]"
                )
            found.append((x, y))
        if not found:
            raise self.error(field, "has no points")
        return tuple(found)

    def finish(self) -> None:
        """Refuse fields that nothing took: a misspelt field must not pass in silence."""
        for field in self._table:
            if field not in self._taken:
                near = nearest(field, self._taken)
                raise self.error(field, f"is unknown{near}")

    def _take(self, field: str, default: Any) -> Any:
        self._taken.add(field)
        return self._table.get(field, default)

    def _typed(self, field: str, default: _T | None, kind: type[_T], words: str) -> _T:
        value = self._take(field, default)
        if value is None:
            raise self.error(field, "is missing; " + self._hint(field))
        if not isinstance(value, kind):
            raise self.error(field, f"is {value!r}; it must be {words}")
        return value

    def _sourced(self, field: str) -> Any:
        value = self._take(field, None)
        evidence = self._default
        if isinstance(value, dict):
            entry = cast("dict[str, Any]", value)
            unknown = set(entry) - {"value", "source", "grade"}
            if unknown or "value" not in entry:
                raise self.error(field, f"is {entry!r}; it must have value, source and grade")
            grade = self._grade(field, entry.get("grade", evidence.grade))
            source = entry.get("source", evidence.source)
            if not isinstance(source, str) or not source:
                raise self.error(field, f"has the source {source!r}; it must be a text")
            evidence, value = Evidence(grade, source), entry["value"]
        self.evidence[self._prefix + field] = evidence
        return value

    def _grade(self, field: str, value: Any) -> Grade:
        for grade in GRADES:
            if value == grade:
                return grade
        raise self.error(field, f"has the grade {value!r}; the grades are: {', '.join(GRADES)}")

    def _hint(self, field: str) -> str:
        near = difflib.get_close_matches(field, set(self._table) - self._taken, n=1)
        return f"did you mean {near[0]!r}?" if near else "a profile must state it"


def nearest(name: str, names: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the closest of `names`, or nothing."""
    found = difflib.get_close_matches(name, sorted(names), n=1, cutoff=0.5)
    return f"; did you mean {found[0]!r}?" if found else ""


def profile_names(kind: str) -> tuple[str, ...]:
    """Names of the shipped profiles of a kind: hardware, models or links."""
    return tuple(sorted(path.stem for path in (PROFILES / kind).glob("*.toml")))


def profile_path(kind: str, name: str | Path, aliases: Mapping[str, str]) -> Path:
    """The file of a profile: a path to a TOML file, or the name or alias of a shipped one.

    Names are matched without regard to case, and `_`, `/`, blank and `.` count as `-` when the
    exact name does not exist.
    """
    if isinstance(name, Path) or name.endswith(".toml"):
        return Path(name)
    names = profile_names(kind)
    known = {plain_name(n): n for n in names} | {plain_name(a): n for a, n in aliases.items()}
    found = known.get(plain_name(name))
    if found is None:
        near = nearest(plain_name(name), known).lstrip("; ")
        raise ProfileError(
            f"no {kind.removesuffix('s')} profile {name!r}{near and f' ({near})'}; "
            f"the profiles are: {', '.join(names)}; a path to a .toml file works too",
            field="name",
        )
    return PROFILES / kind / f"{found}.toml"


def plain_name(name: str) -> str:
    """A name as it is compared: lower case, one kind of separator.

    Example:
        >>> plain_name("Llama 3.1_8B")
        'llama-3-1-8b'
    """
    return "".join("-" if c in "_/ ." else c for c in name.lower())
