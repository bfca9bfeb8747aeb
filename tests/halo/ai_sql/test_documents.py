"""Documents as rows, and chunks of texts."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from halo.ai_sql.batch import SqlBatch
from halo.ai_sql.chunking import chunks
from halo.session import Session


def pdf(path: Path, pages: list[str]) -> None:
    """A small PDF with a line of text on each page."""
    from pypdf import PdfWriter
    from pypdf.generic import DecodedStreamObject, DictionaryObject, NameObject

    writer = PdfWriter()
    for text in pages:
        page = writer.add_blank_page(300, 100)
        font = DictionaryObject(
            {
                NameObject("/Type"): NameObject("/Font"),
                NameObject("/Subtype"): NameObject("/Type1"),
                NameObject("/BaseFont"): NameObject("/Helvetica"),
            }
        )
        fonts = DictionaryObject({NameObject("/F1"): writer._add_object(font)})
        page[NameObject("/Resources")] = DictionaryObject({NameObject("/Font"): fonts})
        content = DecodedStreamObject()
        content.set_data(f"BT /F1 12 Tf 10 50 Td ({text}) Tj ET".encode())
        page[NameObject("/Contents")] = writer._add_object(content)
    writer.write(path)


def docx(path: Path, paragraphs: list[str]) -> None:
    import docx as python_docx

    document = python_docx.Document()
    for text in paragraphs:
        document.add_paragraph(text)
    table = document.add_table(rows=1, cols=2)
    table.cell(0, 0).text, table.cell(0, 1).text = "left", "right"
    document.save(str(path))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    pdf(tmp_path / "a.pdf", ["First page", "Second page"])
    docx(tmp_path / "b.docx", ["One paragraph", "Another"])
    (tmp_path / "c.html").write_text("<h1>Title</h1><script>x()</script><p>Body &amp; soul</p>")
    (tmp_path / "d.txt").write_text("Plain text")
    (tmp_path / "e.pdf").write_bytes(b"%PDF-1.4 not really")
    (tmp_path / "f.txt").write_bytes(b"\xff\x00\x01")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_documents_are_rows(folder: Path) -> None:
    text = "SELECT filename, content, pages, error FROM read_document('*') ORDER BY filename"
    with Session(engine="simulated") as session, SqlBatch(text, session) as batch:
        rows = {row["filename"]: row for row in batch.run()[0]}
    assert rows["a.pdf"]["content"].split() == ["First", "page", "Second", "page"]
    assert rows["a.pdf"]["pages"] == 2
    assert rows["b.docx"]["content"] == "One paragraph\nAnother\nleft\tright"
    assert rows["c.html"]["content"] == "Title\nBody & soul"
    assert (rows["d.txt"]["content"], rows["d.txt"]["error"]) == ("Plain text", None)
    for name, reason in (("e.pdf", "not a readable PDF"), ("f.txt", "not UTF-8")):
        assert rows[name]["content"] is None and reason in rows[name]["error"]


def test_documents_are_cut_and_asked_about(folder: Path) -> None:
    (folder / "long.txt").write_text(" ".join(f"word{i}." for i in range(400)))
    text = """
        SELECT d.filename, c.chunk, AI_CLASSIFY(c.chunk, ['a', 'b']) AS k
        FROM read_document('*.txt') AS d, ai_chunks(d.content, tokens := 100, overlap := 10) AS c
        WHERE d.error IS NULL"""
    with Session(engine="simulated") as session, SqlBatch(text, session) as batch:
        (result,) = batch.run()
        rows = list(result)
    long = [row["chunk"] for row in rows if row["filename"] == "long.txt"]
    assert len(long) > 5 and {row["k"] for row in rows} <= {"a", "b"}
    words = {word for chunk in long for word in chunk.split()}
    assert words == {f"word{i}." for i in range(400)}


def test_a_missing_document_is_an_error(folder: Path) -> None:
    from halo.ai_sql.errors import SqlError

    with (
        Session(engine="simulated") as session,
        pytest.raises(SqlError, match=r"no file nope\.pdf"),
    ):
        SqlBatch("SELECT * FROM read_document('nope.pdf')", session)


@given(st.lists(st.integers(0, 9), max_size=60), st.integers(3, 20), st.integers(0, 19), st.data())
def test_chunks_cover_the_text_and_fit(
    lengths: list[int], tokens: int, overlap: int, data: st.DataObject
) -> None:
    words = [f"{i}" + "é" * length for i, length in enumerate(lengths)]
    ends = [data.draw(st.sampled_from([" ", ". ", "\n\n", "\n"])) for _ in words]
    text = "".join(word + end for word, end in zip(words, ends, strict=True))
    found = chunks(text, tokens, min(overlap, tokens - 1))
    assert all(len(chunk.encode()) <= 4 * tokens for chunk in found)
    if all(len(word.encode()) < 4 * tokens for word in words):
        seen = {word.strip(".") for chunk in found for word in chunk.split()}
        assert seen >= set(words)


@given(st.text(alphabet="ab中", min_size=1, max_size=300), st.integers(1, 20))
def test_a_text_without_spaces_is_cut_anywhere(text: str, tokens: int) -> None:
    assert "".join(chunks(text, tokens, 0)) == text
