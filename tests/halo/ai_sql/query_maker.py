"""Random statements over the dialect, for the tables of conftest.py."""

from __future__ import annotations

import random
from dataclasses import dataclass


@dataclass(frozen=True)
class Query:
    """A statement. With `limit`, any of so many rows of `text` without its limit will do."""

    text: str
    unlimited: str = ""
    limit: int = 0


class QueryMaker:
    """Makes statements from a seed."""

    def __init__(self, seed: int) -> None:
        self._draw = random.Random(seed)

    def query(self) -> Query:
        """One SELECT."""
        shape = self._draw.choices(
            [
                self._plain, self._plain, self._limited, self._top, self._grouped, self._joined,
                self._derived, self._cte, self._exists, self._union, self._window, self._scalar,
                self._aggregated, self._in_list, self._distinct, self._pair_of_filters,
            ]
        )[0]  # fmt: skip
        return shape()

    # --- pieces ----------------------------------------------------------------------------------

    def _one(self, *choices: str) -> str:
        return self._draw.choice(choices)

    def _chance(self, share: float) -> bool:
        return self._draw.random() < share

    def cheap(self, t: str = "") -> str:
        return self._one(
            f"{t}stars <= {self._draw.randint(1, 4)}", f"{t}lang = 'en'", f"{t}lang <> 'de'",
            f"{t}id % 3 = {self._draw.randint(0, 2)}", f"{t}stars IS NULL", f"{t}product_id > 3",
            f"length({t}body) > 12", f"{t}stars BETWEEN 2 AND 4", f"{t}title LIKE '%3'",
        )  # fmt: skip

    def text(self, t: str = "") -> str:
        return self._one(f"{t}body", f"{t}body", f"{t}title", f"upper({t}body)", f"{t}lang")

    def prompt(self, t: str = "") -> str:
        question = self._one("Is it good?", "Is it late?", "Angry?")
        return self._one(
            f"PROMPT('{question} {{0}}', {self.text(t)})",
            f"PROMPT('{question} {{1}} / {{0}}', {self.text(t)}, {t}stars)",
            f"'{question} {{{t}body}}'",
            f"PROMPT('{question} {{0}} {{0}}', {t}title)",
        )

    def filter(self, t: str = "") -> str:
        name = self._one("AI_FILTER", "AI_FILTER", "AI.IF", "ai_filter")
        return f"{name}({self.prompt(t)})"

    def score(self, t: str = "") -> str:
        return f"AI_SCORE({self.prompt(t)})"

    def label(self, t: str = "") -> str:
        return f"AI_CLASSIFY({self.text(t)}, ['{self._one('red', 'pink')}', 'blue', 'green'])"

    def value(self, t: str = "") -> str:
        return self._one(
            self.score(t), self.label(t), f"AI_COMPLETE({self.prompt(t)})", self.filter(t),
            f"AI_EXTRACT({self.text(t)}, {{'who': 'VARCHAR', 'age': 'INTEGER'}}).age",
            f"AI_EXTRACT({self.text(t)}, {{'who': 'VARCHAR', 'age': 'INTEGER'}})",
            f"AI_CLASSIFY({self.text(t)}, ['x', 'y', 'z'], multi := true)",
            f"AI_COMPLETE({self.prompt(t)}, returns := 'INTEGER')",
            f"round(AI_SIMILARITY({t}body, {t}title), 6)",
            f"AI_SENTIMENT({t}body)", "AI_COMPLETE('Say hello')",
            f"AI_COMPLETE(PROMPT('about {{0}}', {self.label(t)}))",
            f"upper(AI_SUMMARIZE({self.text(t)}))",
        )  # fmt: skip

    def guarded(self, t: str = "") -> str:
        return self._one(
            f"CASE WHEN {self.cheap(t)} THEN {self.label(t)} ELSE 'none' END",
            f"CASE WHEN {self.filter(t)} THEN {self.label(t)} WHEN {self.cheap(t)} THEN "
            f"AI_COMPLETE({self.prompt(t)}) END",
            f"CASE {t}lang WHEN 'en' THEN {self.score(t)} WHEN 'de' THEN 1.5 ELSE {self.score(t)} "
            "END",
            f"coalesce({t}stars, CAST({self.score(t)} AS INTEGER))",
            f"if({self.cheap(t)}, {self.label(t)}, {self.label(t)})",
            f"({self.cheap(t)} OR {self.filter(t)})", f"({self.cheap(t)} AND {self.filter(t)})",
            f"(NOT {self.filter(t)} AND {self.cheap(t)})",
        )  # fmt: skip

    def item(self, t: str = "") -> str:
        return self.value(t) if self._chance(0.6) else self.guarded(t)

    def condition(self, t: str = "") -> str:
        """A WHERE condition with a call in it, mostly."""
        parts = [self.cheap(t) for _ in range(self._draw.randint(0, 2))]
        parts += [
            self._one(
                self.filter(t), f"NOT {self.filter(t)}", f"{self.score(t)} > 40",
                f"{self.label(t)} = 'blue'", f"({self.filter(t)} OR {self.cheap(t)})",
                f"({self.cheap(t)} OR {self.filter(t)} AND {self.filter(t)})",
                f"({self.guarded(t)}) IS NOT NULL", f"{self.filter(t)} IS NULL",
                f"{self.score(t)} BETWEEN 20 AND 80", f"{self.label(t)} IN ('red', 'green')",
            )
            for _ in range(self._draw.choice([1, 1, 2]))
        ]  # fmt: skip
        self._draw.shuffle(parts)
        return " AND ".join(parts)

    # --- shapes ----------------------------------------------------------------------------------

    def _plain(self) -> Query:
        items = ["id", *(self.item() for _ in range(self._draw.randint(0, 2)))]
        where = f" WHERE {self.condition()}" if self._chance(0.8) or len(items) == 1 else ""
        return Query(f"SELECT {', '.join(items)} FROM reviews{where}")

    def _pair_of_filters(self) -> Query:
        parts = [self.filter(), self.filter(), self.cheap()]
        if self._chance(0.3):
            parts[1] = f"NOT {parts[1]}"
        self._draw.shuffle(parts)
        return Query(f"SELECT id FROM reviews r WHERE {' AND '.join(parts)}")

    def _limited(self) -> Query:
        limit, offset = self._draw.randint(1, 8), self._draw.choice([0, 0, 2])
        where = " AND ".join([self.filter(), *([self.cheap()] if self._chance(0.5) else [])])
        item = f", {self.label()}" if self._chance(0.4) else ""
        text = f"SELECT id{item} FROM reviews WHERE {where}"
        tail = f" LIMIT {limit}" + (f" OFFSET {offset}" if offset else "")
        return Query(text + tail, text, limit)

    def _top(self) -> Query:
        item = f", {self.item()} AS extra" if self._chance(0.5) else ""
        where = f" WHERE {self.cheap()}" if self._chance(0.5) else ""
        by = self._one(f"{self.score()} DESC NULLS LAST", "stars NULLS FIRST", self.label())
        return Query(
            f"SELECT id{item} FROM reviews{where} ORDER BY {by}, id LIMIT "
            f"{self._draw.randint(1, 9)}"
        )

    def _grouped(self) -> Query:
        key = self._one("lang", "product_id", self.label(), "stars")
        having = self._one("", " HAVING count(*) > 3", " HAVING count(*) > 2 AND max(stars) > 1")
        item = self._one(
            "count(*) AS n", f"avg({self.score()}) AS n",
            f"count(*) FILTER (WHERE {self.filter()}) AS n",
            f"max({self.score()}) FILTER (WHERE {self.cheap()}) AS n",
            f"count(DISTINCT {self.label()}) AS n",
        )  # fmt: skip
        where = f" WHERE {self._one(self.cheap(), self.filter())}" if self._chance(0.5) else ""
        by = self._one("ALL", "1", "k")
        return Query(f"SELECT {key} AS k, {item} FROM reviews{where} GROUP BY {by}{having}")

    def _aggregated(self) -> Query:
        where = f" FILTER (WHERE {self.cheap()})" if self._chance(0.5) else ""
        order = " ORDER BY id" if self._chance(0.4) else ""
        agg = self._one(
            f"AI_AGG(body, 'List complaints'{order}){where}",
            f"AI_SUMMARIZE_AGG(title){where}",
        )
        having = " HAVING count(*) >= 5" if self._chance(0.4) else ""
        key = self._one("lang", "product_id")
        if self._chance(0.3):
            inner = (
                f"SELECT {key} AS g, AI_COMPLETE({self.prompt()}) AS r FROM reviews WHERE stars < 3"
            )
            return Query(
                f"WITH s AS ({inner}) SELECT g, AI_SUMMARIZE_AGG(r) AS s FROM s GROUP BY g"
            )
        return Query(f"SELECT {key}, count(*), {agg} AS a FROM reviews GROUP BY {key}{having}")

    def _joined(self) -> Query:
        pair = "AI_FILTER(PROMPT('Covers {0}? {1}', c.text, p.clause))"
        on = self._one(f"c.line = p.line AND {pair}", f"{pair} AND c.line = p.line", pair)
        kind = self._one("JOIN", "JOIN", "LEFT JOIN", "RIGHT JOIN", "FULL JOIN")
        where = self._one("", " WHERE c.amount > 20", " WHERE p.code IS NOT NULL")
        if self._chance(0.25):
            kind = self._one("SEMI JOIN", "ANTI JOIN")
            return Query(f"SELECT c.id FROM claims c {kind} policies p ON {on}")
        if self._chance(0.2):
            return Query(
                f"SELECT c.id, p.code FROM claims c, policies p WHERE c.line = p.line AND {pair}"
            )
        extra = ", AI_CLASSIFY(c.text, ['a', 'b'])" if self._chance(0.3) else ""
        return Query(f"SELECT c.id, p.code{extra} FROM claims c {kind} policies p ON {on}{where}")

    def _derived(self) -> Query:
        outer = self._one("d.lang = 'en'", "v IS NOT NULL", "d.id > 20 AND lang <> 'fr'", "id < 9")
        picked = self._one("id, v", "*", "id", "d.id, d.v")
        inner = f"SELECT id, lang, {self.item()} AS v FROM reviews"
        if self._chance(0.4):
            inner += f" WHERE {self._one(self.cheap(), self.filter())}"
        return Query(f"SELECT {picked} FROM ({inner}) AS d WHERE {outer}")

    def _cte(self) -> Query:
        inner = f"SELECT id, product_id, {self.value()} AS v FROM reviews WHERE {self.cheap()}"
        outer = self._one(
            "SELECT * FROM s", "SELECT product_id, count(v) FROM s GROUP BY product_id",
            "SELECT a.id FROM s a JOIN s b ON a.id = b.id + 1 WHERE a.v IS NOT NULL",
            "SELECT id, v FROM s WHERE id % 2 = 0", "SELECT count(*) FROM s",
            "SELECT AI_CLASSIFY(CAST(v AS VARCHAR), ['p', 'q']) AS w FROM s WHERE id < 30",
        )  # fmt: skip
        return Query(f"WITH s AS ({inner}) {outer}")

    def _exists(self) -> Query:
        pair = "AI_FILTER(PROMPT('Covers {0}? {1}', c.text, p.clause))"
        negated = self._one("", "NOT ")
        cheap = self._one("", " AND c.amount < 25")
        return Query(
            f"SELECT c.id FROM claims c WHERE {negated}EXISTS (SELECT 1 FROM policies p WHERE "
            f"p.line = c.line AND {pair}){cheap}"
        )

    def _scalar(self) -> Query:
        score = "AI_SCORE(PROMPT('How well does {1} cover {0}?', c.text, p.clause))"
        where = self._one("", " WHERE c.amount > 15")
        return Query(
            f"SELECT c.id, (SELECT max({score}) FROM policies p WHERE p.line = c.line) AS m "
            f"FROM claims c{where}"
        )

    def _in_list(self) -> Query:
        return Query(
            "SELECT id FROM reviews WHERE product_id IN (SELECT product_id FROM reviews r2 WHERE "
            f"{self.filter('r2.')} AND {self.cheap('r2.')}) AND {self.cheap()}"
        )

    def _union(self) -> Query:
        kind = self._one("UNION ALL", "UNION", "EXCEPT", "INTERSECT")
        return Query(
            f"SELECT {self.label()} AS v FROM reviews WHERE {self.cheap()} {kind} "
            f"SELECT {self.label()} FROM reviews WHERE {self.condition()}"
        )

    def _window(self) -> Query:
        over = f"PARTITION BY lang ORDER BY {self.score()} DESC NULLS LAST, id"
        return Query(
            f"SELECT id, row_number() OVER ({over}) AS r, {self.item()} AS v FROM reviews "
            f"WHERE {self.cheap()} QUALIFY r <= {self._draw.randint(1, 3)}"
        )

    def _distinct(self) -> Query:
        return Query(f"SELECT DISTINCT {self.label()} AS v, lang FROM reviews WHERE {self.cheap()}")
