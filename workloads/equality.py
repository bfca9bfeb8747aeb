"""Whether Halo's answers are those of plain code: the same rows, the same server, greedy decoding.

    python -m workloads.equality --url http://127.0.0.1:30000 [--workload reflect] [--rows 24]

The model has to be one whose chat format is ChatML with a system turn. Prints a JSON document with
the rows that differ, both answers side by side. Rows may differ although nothing is wrong: a batch
of another shape rounds a bfloat16 product differently, and once two tokens are nearly as likely,
the
other one is chosen. Both orders are therefore run twice, and rows in which a system differs from
itself are counted apart.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import Sequence
from typing import Any

import halo
from workloads.baselines import all_rows_at_once
from workloads.catalogue import named
from workloads.compare import flush
from workloads.direct import DirectClient, Endpoints
from workloads.graph import Workload


def answers_of_halo(
    url: str, model: str, workload: Workload, rows: Sequence[dict[str, str]]
) -> list[Any]:
    """The rows' values, None for a failed row."""
    flush([url])
    with halo.Session(engine=f"sglang={url}") as session:
        result = session.run(workload.flow(models={"8b": model}), list(rows))
    return [outcome.value for outcome in result]


def answers_of_plain_code(
    url: str, workload: Workload, rows: Sequence[dict[str, str]]
) -> list[str]:
    """The same by baseline (a)."""
    flush([url])

    async def run() -> list[str]:
        async with DirectClient(Endpoints({"8b": url}, {}), full_length=False) as client:
            return await all_rows_at_once(client, workload.graph(), rows, lambda _: None)

    return asyncio.run(run())


def compare(url: str, model: str, workload: Workload, count: int, seed: int = 1) -> dict[str, Any]:
    """How many rows are equal, and those that are not."""
    rows = workload.rows(count, seed)
    plain = answers_of_plain_code(url, workload, rows)
    by_halo = answers_of_halo(url, model, workload, rows)
    again = answers_of_plain_code(url, workload, rows)
    differing = [
        {
            "row": i,
            "halo": by_halo[i],
            "plain": plain[i],
            "plain_again": again[i] if again[i] != plain[i] else "the same",
        }
        for i in range(count)
        if by_halo[i] != plain[i]
    ]
    return {
        "workload": workload.name,
        "model": model,
        "rows": count,
        "equal": count - len(differing),
        "plain_code_equal_to_itself": sum(a == b for a, b in zip(plain, again, strict=True)),
        "distinct_answers": len(set(plain)),
        "differing": differing,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--url", required=True)
    parser.add_argument("--model", default="smollm2", help="the server's name of its model")
    parser.add_argument("--workload", default="reflect")
    parser.add_argument("--rows", type=int, default=24)
    arguments = parser.parse_args()
    workload = named(arguments.workload)[0]
    found = compare(arguments.url, arguments.model, workload, arguments.rows)
    print(json.dumps(found, ensure_ascii=False, indent=1))


if __name__ == "__main__":
    main()
