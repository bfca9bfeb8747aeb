"""The documents of the demonstration, and its two workflows on the simulated engine."""

from __future__ import annotations

from pathlib import Path

import pytest

from workloads.demo import DOCUMENTS, demo
from workloads.package_documents import DOCUMENT_CHARS, opening, package_rows, prose

README = """
# Frobnicate

[![build](https://ci.example/badge.svg)](https://ci.example) <img src="logo.png">

Frobnicate turns **widgets** into `gadgets` with the [fast method](https://e.org/f) of 1998.

```python
import frobnicate; print("this is code, and no sentence at all, however long it may be.")
```

* a list item that is long enough to be taken for a paragraph of prose, but is none.

It needs no configuration, reads files of any size, and is used by three factories in the north.
"""


def test_prose_is_what_a_person_would_read() -> None:
    assert prose(README) == [
        "Frobnicate turns widgets into gadgets with the fast method of 1998.",
        "It needs no configuration, reads files of any size, and is used by three factories in the "
        "north.",
    ]


def test_an_opening_is_the_summary_and_whole_sentences_that_say_more() -> None:
    text = opening("Turns widgets into gadgets", README)
    assert text.startswith("Turns widgets into gadgets. ")
    assert text.endswith((".", "!"))
    assert len(text) <= DOCUMENT_CHARS
    # A sentence that says the same again is left out.
    assert (
        opening("Widgets into gadgets", "Widgets turn into gadgets, gadgets into widgets. " * 4)
        == "Widgets into gadgets."
    )


def test_there_are_enough_documents_and_none_is_empty() -> None:
    rows = package_rows(DOCUMENTS)
    assert len(rows) == DOCUMENTS
    assert all(len(row["text"]) > 10 for row in rows)


def test_the_demonstration_merges_two_workflows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert demo(tmp_path / "runs" / "demo", model=None, engine="simulated") == 0
    shown = capsys.readouterr().out
    assert "280 calls (360 alone)" in shown
    assert f"{DOCUMENTS} " in shown
    assert all(word in shown for word in ("enthusiast:", "sceptic:", "decision:", "category:"))
