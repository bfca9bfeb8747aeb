"""The five queries of the SQL benchmark in other systems, as a careful user would write them: plain
conditions first, then the system's own filter and classification.

Runs with the Python of an environment that has the system installed, as a file:
`PYTHON sql_peers.py NAME URL ROWS.jsonl`. Imports nothing of Halo. Prints one JSON object: the
system's version, the seconds that the queries took once it was loaded, and the rows that each
returned. LOTUS and fenic have an answer cache that is off by default: `lotus-cache` and
`fenic-cache` turn it on. Daft has none.
"""

# The systems are installed in environments of their own, so their types are not known here.
# pyright: reportMissingImports=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownLambdaType=false, reportUnknownParameterType=false

from __future__ import annotations

import gc
import json
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

DELIVERY = "Does this review complain about delivery?"
ANGRY = "Is the writer angry?"
LABELS = ["delivery", "quality", "price", "service"]

Rows = list[dict[str, Any]]
Queries = Callable[[], list[int]]
"""Runs the five queries; returns how many rows each has."""


def lotus(url: str, rows: Rows, *, cached: bool = False) -> Queries:
    """LOTUS 1.2: semantic operators on pandas data frames."""
    # Or it waits for a price list from the network while it is imported.
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    import lotus as system
    import pandas
    from lotus.cache import CacheConfig, CacheFactory, CacheType
    from lotus.models import LM

    # Its default of 1,024 answers is less than the queries have.
    store = CacheConfig(cache_type=CacheType.IN_MEMORY, max_size=100_000)
    model = LM(
        model="openai/gpt-4o-mini",
        api_base=url,
        api_key="x",
        max_batch_size=32,
        cache=CacheFactory.create_cache(store),
    )
    system.settings.configure(lm=model, enable_cache=cached)
    df: Any = pandas.DataFrame(rows)

    def queries() -> list[int]:
        low = df[df.stars <= 2]
        first = low[low.lang == "en"].sem_filter(f"{DELIVERY} {{body}}")
        labels = f"Give the label of {{body}}, one of {', '.join(LABELS)}"
        second = df[df.stars == 1].sem_map(labels)
        third = low.sem_filter(f"{DELIVERY} {{body}}").groupby("lang").size()
        kept = low.sem_filter(f"{DELIVERY} {{body}}")
        fourth = kept.sem_map(labels) if len(kept) else kept
        fifth = df[df.stars <= 3].sem_filter(f"{ANGRY} {{body}}")
        return [len(each) for each in (first, second, third, fourth, fifth)]

    return queries


def fenic(url: str, rows: Rows, *, cached: bool = False) -> Queries:
    """fenic 0.13: a DataFrame API with semantic expressions."""
    _count_tokens_offline()
    import fenic as fc

    os.environ.setdefault("OPENAI_API_KEY", "x")
    model = fc.OpenAILanguageModel(
        model_name="gpt-4o-mini", rpm=99_999, tpm=99_999_999, base_url=url
    )
    session = fc.Session.get_or_create(
        fc.SessionConfig(
            app_name="reviews",
            semantic=fc.SemanticConfig(
                language_models={"m": model},
                llm_response_cache=fc.LLMResponseCacheConfig() if cached else None,
            ),
        )
    )
    df = session.create_dataframe(rows)

    def asks(question: str) -> Any:
        return fc.semantic.predicate(f"{question} {{{{ body }}}}", body=fc.col("body"))

    def queries() -> list[int]:
        label = fc.semantic.classify(fc.col("body"), LABELS).alias("k")
        low = df.filter(fc.col("stars") <= 2)
        first = low.filter(fc.col("lang") == "en").filter(asks(DELIVERY)).to_pylist()
        second = df.filter(fc.col("stars") == 1).select("id", label).to_pylist()
        third = low.filter(asks(DELIVERY)).group_by("lang").agg(fc.count("*")).to_pylist()
        fourth = low.filter(asks(DELIVERY)).select("id", label).to_pylist()
        fifth = df.filter(fc.col("stars") <= 3).filter(asks(ANGRY)).to_pylist()
        return [len(each) for each in (first, second, third, fourth, fifth)]

    df.count()  # what is loaded on first use is loaded
    return queries


def _count_tokens_offline() -> None:
    """fenic counts tokens with a vocabulary that tiktoken downloads. Without a network a token is
    estimated as four bytes, which its rate limits and estimates use and its requests do not."""
    import tiktoken

    class Estimate:
        def encode(self, text: str, **_: Any) -> list[int]:
            return [0] * (len(text.encode()) // 4 + 1)

        def encode_ordinary(self, text: str) -> list[int]:
            return self.encode(text)

    def estimate(*_: Any) -> Estimate:
        return Estimate()

    try:
        tiktoken.get_encoding("o200k_base")
    except Exception:
        tiktoken.get_encoding = estimate
        tiktoken.encoding_for_model = estimate


def daft(url: str, rows: Rows) -> Queries:
    """Daft 0.7: a DataFrame API with a prompt function."""
    import daft as system
    from daft.functions import format as text
    from daft.functions import prompt

    # Each query makes a client and drops it unclosed. When Python's collector of cycles finds one,
    # its connections close their sockets, and then the client, which closes itself in a task, tells
    # the event loop to read no longer from sockets of those numbers, which the next query's
    # connections may have by then: their answers are never read (docs/benchmarks/sql.md).
    gc.disable()
    # A process that is stopped for a while does not ask again.
    system.set_provider("openai", api_key="x", base_url=url, timeout=3600.0)
    df = system.from_pylist(rows)
    body = system.col("body")

    def ask(question: str) -> Any:
        asked = text(f"{question} Answer yes or no. {{}}", body)
        return prompt(asked, model="gpt-4o-mini", use_chat_completions=True)

    def labelled() -> Any:
        asked = text(f"Give one label of {', '.join(LABELS)}. {{}}", body)
        return prompt(asked, model="gpt-4o-mini", use_chat_completions=True)

    def kept(frame: Any, question: str) -> Any:
        return frame.with_column("answer", ask(question)).where(system.col("answer") == "yes")

    def queries() -> list[int]:
        low = df.where(system.col("stars") <= 2)
        first = kept(low.where(system.col("lang") == "en"), DELIVERY).to_pylist()
        second = df.where(system.col("stars") == 1).with_column("k", labelled()).to_pylist()
        third = kept(low, DELIVERY).groupby("lang").agg(system.col("id").count()).to_pylist()
        fourth = kept(low, DELIVERY).with_column("k", labelled()).to_pylist()
        fifth = kept(df.where(system.col("stars") <= 3), ANGRY).to_pylist()
        return [len(each) for each in (first, second, third, fourth, fifth)]

    df.count_rows()  # what is loaded on first use is loaded
    return queries


def main() -> None:
    name, url, path = sys.argv[1:4]
    lines = Path(path).read_text("utf-8").splitlines()
    rows: Rows = [json.loads(line) for line in lines]
    systems: dict[str, tuple[str, Callable[[str, Rows], Queries]]] = {
        "lotus": ("lotus-ai", lotus),
        "lotus-cache": ("lotus-ai", partial(lotus, cached=True)),
        "fenic": ("fenic", fenic),
        "fenic-cache": ("fenic", partial(fenic, cached=True)),
        "daft": ("daft", daft),
    }
    package, load = systems[name]
    queries = load(url, rows)
    started = time.monotonic()
    counts = queries()
    queries_s = round(time.monotonic() - started, 2)
    print(json.dumps({"version": version(package), "queries_s": queries_s, "rows": counts}))


if __name__ == "__main__":
    main()
