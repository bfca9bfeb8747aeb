"""Which expressions are all that a query knows of its parameters."""

from __future__ import annotations

import duckdb
import pytest

from planner.sql_parameters import parameter_expressions
from planner.sql_pure import PURE_FUNCTIONS


@pytest.mark.parametrize(
    ("text", "kept", "expressions"),
    [
        ("SELECT n FROM t WHERE k = lower($p)", (), ("lower($p)",)),
        (
            "SELECT n FROM t WHERE y = CAST(split_part($p, ' ', 3) AS INTEGER) AND k = $k",
            ("k",),
            ("CAST(split_part($p, ' ', 3) AS INTEGER)",),
        ),
        # The largest ones; equal ones are one.
        (
            "SELECT left(k, length($p)) FROM t WHERE k LIKE lower(ltrim($p)) || '%' "
            "GROUP BY left(k, length($p))",
            (),
            ("(lower(ltrim($p)) || '%')", "length($p)"),
        ),
        # Within conditions, joins, limits, subqueries, windows and filters of aggregates.
        (
            "WITH s AS (SELECT k FROM t WHERE k IN (upper($p), 'x') LIMIT least($n, 10)) "
            "SELECT sum(x) FILTER (WHERE y = abs($a)) OVER (ORDER BY y % ($b // 2)) "
            "FROM t JOIN s ON t.k = s.k AND s.k <> reverse($p) "
            "WHERE EXISTS (SELECT 1 FROM t AS u WHERE u.k = t.k AND u.y < $a % 5)",
            (),
            ("($a % 5)", "($b // 2)", "abs($a)", "least($n, 10)", "reverse($p)", "upper($p)"),
        ),
        # A condition on parameters alone is one value.
        (
            "SELECT n FROM t WHERE (lower($p) = 'all' OR $q IS NULL) AND n > 3",
            (),
            ("((lower($p) = 'all') OR ($q IS NULL))",),
        ),
        # Words in texts are no parameters, and names that the text has are not used again.
        (
            "SELECT n FROM t WHERE k = 'it''s $p halo_0' || lower($p)",
            (),
            ("('it''s $p halo_0' || lower($p))",),
        ),
        ("SELECT n FROM t WHERE a = lower($p) AND b = $q || lower($p)", (), None),
        ("SELECT n FROM t WHERE d = CAST($p AS DATE)", (), ("CAST($p AS date)",)),
        ("SELECT n FROM t WHERE x = $a + $b", (), ("($a + $b)",)),
        (
            "SELECT n FROM t WHERE x = json_extract_string($j, '$.a')",
            (),
            ("json_extract_string($j, '$.a')",),
        ),
        # A parameter that is kept tells nothing of one that is not.
        ("SELECT n FROM t WHERE x = $a AND y = concat($a, lower($b))", ("a",), None),
    ],
)
def test_expressions_of_queries(
    text: str, kept: tuple[str, ...], expressions: tuple[str, ...] | None
) -> None:
    use = parameter_expressions(text)
    assert use is not None
    assert use.kept == kept
    if expressions is not None:
        # Types are printed as written by some versions of DuckDB.
        found = sorted(each.replace("AS DATE", "AS date") for each in use.expressions)
        assert found == sorted(expressions)


@pytest.mark.parametrize(
    "text",
    [
        # The parameter itself is used.
        "SELECT n FROM t WHERE k = $p",
        "SELECT n FROM t WHERE k = lower($p) OR n = $p",
        "SELECT $p AS p, n FROM t WHERE k = lower($p)",
        # Different parameters stay different.
        "SELECT n FROM t WHERE k ILIKE '%' || $p || '%'",
        "SELECT n FROM t WHERE k = concat($p, ' ', $q)",
        "SELECT n FROM t WHERE y = $p + 1 AND z = CAST($q AS INTEGER)",
        "SELECT n FROM t WHERE k = coalesce($p)",
        # Not pure, not known, not constant, or no expression.
        "SELECT n FROM t WHERE k = lower($p) AND x < random()",
        "SELECT n FROM t WHERE k = lower($p) AND d = today()",
        "SELECT n FROM t WHERE k = lower($p) AND d = current_date",
        "SELECT n FROM t WHERE k = my_macro($p)",
        "SELECT n FROM t WHERE k = other.lower($p)",
        "SELECT n FROM t WHERE d = date_trunc('day', CAST($p AS TIMESTAMPTZ))",
        "SELECT n FROM t WHERE k = lower($p || k)",
        "SELECT n FROM range(length($p)) AS r(n)",
        "SELECT max(lower($p) || k) AS n FROM t WHERE n = list_filter(x, lambda e: e = lower($p))",
        "SELECT COLUMNS(lower($p)) FROM t",
        "SELECT n FROM t WHERE k = lower($1)",
        "SELECT n FROM t WHERE k = lower(?)",
        "SELECT n FROM t WHERE k IN (SELECT max($p) FROM t)",
        "SELECT n FROM t",
        # No query that reads.
        "INSERT INTO t VALUES (lower($p))",
        "UPDATE t SET k = lower($p)",
        "WITH x AS (INSERT INTO t VALUES (lower($p)) RETURNING n) SELECT n FROM x",
        "SELECT lower($p); SELECT 1",
        "SELEC lower($p)",
        "",
    ],
)
def test_nothing_less_than_the_parameters_tells(text: str) -> None:
    assert parameter_expressions(text) is None


def test_deep_texts_are_left_alone() -> None:
    deep = "lower(" * 400 + "$p" + ")" * 400
    parameter_expressions(f"SELECT {deep} AS x")
    joined = " || ".join(["lower($p)"] * 2000)
    parameter_expressions(f"SELECT {joined} AS x")


def test_the_functions_are_known_to_duckdb_as_consistent() -> None:
    with duckdb.connect(":memory:") as connection:
        rows = connection.execute(
            "SELECT lower(function_name), bool_and(function_type IN ('scalar', 'macro')), "
            "bool_or(coalesce(stability, 'CONSISTENT') = 'CONSISTENT') "
            "FROM duckdb_functions() WHERE internal GROUP BY ALL"
        ).fetchall()
    known = {str(name): scalar and consistent for name, scalar, consistent in rows}
    # `if` is syntax to older versions.
    assert {name for name in PURE_FUNCTIONS if not known.get(name)} <= {"if"}
