"""Documents: `read_document('*.pdf')` as a table of text, one row a file.

PDF and DOCX need the extra `documents`; text, Markdown and HTML need nothing. A file that cannot be
read has NULL for its content and its reason in the column `error`.
"""

from __future__ import annotations

import html.parser
from pathlib import Path
from typing import Any

from halo.ai_sql.errors import SqlError, SqlRefusedError
from planner.logical import (
    Collect,
    Column,
    Effect,
    Field,
    Json,
    Recover,
    SqlRows,
    Tool,
)
from runtime.errors import ToolError
from runtime.tools import ToolSpec

TOOL = "halo_read_document"
MAX_BYTES = 200 * 2**20
COLUMNS = ("filename", "content", "pages", "size", "error")
TYPES = ("VARCHAR", "VARCHAR", "INTEGER", "BIGINT", "VARCHAR")

_SKIPPED_TAGS = frozenset({"script", "style", "head", "template"})


def document_rows(pattern: str, tool: ToolSpec) -> Collect:
    """The table of the documents that a path or glob names."""
    text = f"SELECT file FROM glob({sql_text(pattern)}) ORDER BY file"
    files = SqlRows((), text=text, columns=("file",), label="documents")
    name = Column((files,), "file")
    # Files change, and a relative path names another file elsewhere: what a run read stays in it.
    read = Tool((name,), tool=tool.ref, params=("path",), label="read_document", fresh=True)
    members = [Recover((Field((read,), key),)) for key in ("text", "pages", "size")]
    failed = Field((Recover((read,), detail=True),), "error")
    return Collect((files, name, *members, failed), COLUMNS, TYPES, label="read_document")


def document_tool(base: Path, allowed: tuple[Path, ...]) -> ToolSpec:
    """The tool that reads one document. Paths are below `base` or one of `allowed`: a link that
    leads elsewhere is refused."""
    roots = tuple(root.resolve() for root in (base, *allowed))

    def read(path: str) -> dict[str, Json]:
        return read_document(Path(path), roots)

    return ToolSpec(
        TOOL,
        read,
        "Reads the text of a document.",
        {"type": "object", "properties": {"path": {"type": "string"}}, "required": ["path"]},
        effect=Effect.PURE,
        timeout_s=300.0,
        max_concurrency=2,
        retries=0,
        version="1",
    )


def read_document(path: Path, roots: tuple[Path, ...]) -> dict[str, Json]:
    """`{"text": ..., "pages": ..., "size": ...}` of one file. Raises `ToolError`."""
    resolved = path.resolve()
    if not any(resolved.is_relative_to(root) for root in roots):
        raise _fault(path, f"{path} leads outside of the directories that may be read")
    try:
        size = resolved.stat().st_size
    except OSError as error:
        raise _fault(path, f"{path} cannot be read: {error.strerror or error}") from None
    if size > MAX_BYTES:
        raise _fault(path, f"{path} has {size:,} bytes; at most {MAX_BYTES:,} are read")
    text, pages = _read(resolved, path)
    return {"text": text, "pages": pages, "size": size}


def _read(resolved: Path, path: Path) -> tuple[str, int | None]:
    suffix = path.suffix.lower()
    if suffix == ".pdf":
        return _pdf(resolved, path)
    if suffix == ".docx":
        return _docx(resolved, path), None
    text = _decoded(resolved, path)
    if suffix in (".html", ".htm", ".xhtml"):
        return _html(text), None
    if "\0" in text:
        raise _fault(path, f"{path} is a binary file of a kind that is not read")
    return text, None


def _pdf(resolved: Path, path: Path) -> tuple[str, int]:
    try:
        from pypdf import PdfReader
        from pypdf.errors import PyPdfError
    except ImportError:
        raise _missing(path, "pypdf") from None
    try:
        reader = PdfReader(resolved)
        if reader.is_encrypted and not reader.decrypt(""):
            raise _fault(path, f"{path} is encrypted")
        pages = [page.extract_text() for page in reader.pages]
    except (PyPdfError, OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise _fault(
            path, f"{path} is not a readable PDF: {type(error).__name__}: {error}"
        ) from error
    return "\n\n".join(pages), len(pages)


def _docx(resolved: Path, path: Path) -> str:
    try:
        import docx
        from docx.opc.exceptions import PackageNotFoundError
    except ImportError:
        raise _missing(path, "python-docx") from None
    try:
        document: Any = docx.Document(str(resolved))
    except (PackageNotFoundError, OSError, ValueError, KeyError) as error:
        raise _fault(
            path, f"{path} is not a readable DOCX: {type(error).__name__}: {error}"
        ) from error
    parts: list[str] = []
    for block in document.iter_inner_content():
        if hasattr(block, "rows"):
            parts += ["\t".join(cell.text for cell in row.cells) for row in block.rows]
        else:
            parts.append(block.text)
    return "\n".join(parts)


def _decoded(resolved: Path, path: Path) -> str:
    data = resolved.read_bytes()
    encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        raise _fault(
            path, f"{path} is not UTF-8 text: {error.reason} at byte {error.start}"
        ) from None


class _Text(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self._skipped = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._skipped += tag in _SKIPPED_TAGS
        if tag in ("p", "br", "div", "li", "tr", "h1", "h2", "h3", "h4"):
            self.parts.append("\n")

    def handle_endtag(self, tag: str) -> None:
        self._skipped -= tag in _SKIPPED_TAGS and self._skipped > 0

    def handle_data(self, data: str) -> None:
        if not self._skipped:
            self.parts.append(data)


def _html(text: str) -> str:
    parser = _Text()
    parser.feed(text)
    parser.close()
    lines = (" ".join(line.split()) for line in "".join(parser.parts).split("\n"))
    return "\n".join(line for line in lines if line)


def _fault(path: Path, message: str) -> ToolError:
    return ToolError(message, tool=TOOL)


def _missing(path: Path, package: str) -> ToolError:
    return ToolError(
        f"{path} needs the package {package}; install it with: pip install 'halo-flow[documents]'",
        tool=TOOL,
    )


def sql_text(text: str) -> str:
    """A text as a SQL literal."""
    return "'" + text.replace("'", "''") + "'"


def check_pattern(pattern: str, text: str, offset: int) -> None:
    """Refuse a pattern that is no local path, or names one file that is not there."""
    if "://" in pattern or "\0" in pattern:
        raise SqlRefusedError(
            "S301", f"read_document: {pattern!r} is not a local path", text=text, offset=offset
        )
    if not pattern.strip():
        raise SqlError("S105", "read_document: an empty path", text=text, offset=offset)
    if not any(c in pattern for c in "*?[{") and not Path(pattern).exists():
        raise SqlError("S303", f"there is no file {pattern}", text=text, offset=offset)
