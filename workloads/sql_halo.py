"""The five queries of the SQL benchmark in Halo, as one batch.

Runs in a process of its own, as the other systems do (`workloads/sql_peers.py`):
`python -m workloads.sql_halo URL ROWS.jsonl`. Prints one JSON object of the same form.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import halo
from workloads.sql_peers import ANGRY, DELIVERY, LABELS

_LABEL = f"AI_CLASSIFY(body, {LABELS})"
_LATE = f"AI_FILTER(PROMPT('{DELIVERY} {{0}}', body))"

QUERIES = (
    f"SELECT * FROM reviews WHERE {_LATE} AND stars <= 2 AND lang = 'en'",
    f"SELECT id, {_LABEL} AS k FROM reviews WHERE stars = 1",
    f"SELECT lang, count(*) AS n FROM reviews WHERE stars <= 2 AND {_LATE} GROUP BY lang",
    f"SELECT id, {_LABEL} AS k FROM reviews WHERE stars <= 2 AND {_LATE}",
    f"SELECT * FROM reviews WHERE stars <= 3 AND AI_FILTER(PROMPT('{ANGRY} {{0}}', body))",
)


def main() -> None:
    url, path = sys.argv[1:3]
    lines = Path(path).read_text("utf-8").splitlines()
    tables = {"reviews": [json.loads(line) for line in lines]}
    with halo.Session(engine=f"openai={url}", model="bench") as session:
        halo.sql("SELECT count(*) FROM reviews", tables=tables, session=session)
        started = time.monotonic()
        result = halo.sql(";\n".join(QUERIES), tables=tables, session=session)
        queries_s = round(time.monotonic() - started, 2)
        rows = [len(each) for each in result.batch]
    print(json.dumps({"version": halo.__version__, "queries_s": queries_s, "rows": rows}))


if __name__ == "__main__":
    main()
