"""Tables for people fit the terminal, and every column has a part of it."""

from __future__ import annotations

import io

import pytest

import halo
from halo.ai_sql.table import print_table
from halo.session import Session


def lines(text: str, monkeypatch: pytest.MonkeyPatch, columns: int) -> list[str]:
    monkeypatch.setenv("COLUMNS", str(columns))
    written = io.StringIO()
    with Session(engine="simulated") as session:
        print_table(halo.sql(text, session=session), file=written)
    return written.getvalue().splitlines()


@pytest.mark.parametrize("columns", [40, 60, 80, 200])
def test_long_texts_leave_room_for_short_ones(
    monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    text = "SELECT repeat('long ', 40) AS a, 'mixed' AS mood, repeat('x', 300) AS b, 7 AS number"
    shown = lines(text, monkeypatch, columns)
    assert {len(line) for line in shown[:-1]} == {columns}
    assert "mixed" in shown[3] and "7" in shown[3] and shown[3].count("…") == 2
    assert "mood" in shown[1] and shown[0].endswith("╮")


def test_what_fits_is_not_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = lines("SELECT 'en' AS lang, repeat('y', 60) AS s", monkeypatch, 80)
    assert "y" * 60 in shown[3] and "…" not in shown[3]


def test_wide_characters_count_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = lines("SELECT '配送が遅い' AS t, 'b' AS u", monkeypatch, 80)
    assert "配送が遅い" in shown[3]
