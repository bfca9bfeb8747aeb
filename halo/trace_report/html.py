"""The report as one self-contained page: charts, tables, and the worst traces turn by turn.

The page's policy allows the two scripts and the style sheet that are in it, by their hashes, and
nothing else: no network, no markup from data, no evaluation of strings.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

_ESCAPES = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026"}


def render_html(report: Mapping[str, Any]) -> str:
    """The document of `build_report` (made with texts) as a page."""
    page = files("halo.trace_report").joinpath("page")
    script = page.joinpath("page.js").read_text("utf-8")
    style = page.joinpath("page.css").read_text("utf-8")
    echarts = (
        files("halo").joinpath("assets").joinpath("echarts").joinpath("echarts.min.js")
    ).read_text("utf-8")
    policy = (
        f"default-src 'none'; script-src {_hash(echarts)} {_hash(script)}; "
        f"style-src {_hash(style)}; img-src data:; base-uri 'none'; form-action 'none'"
    )
    parts = {
        "POLICY": policy,
        "STYLE": style,
        "DATA": as_script_data(report),
        "ECHARTS": echarts,
        "SCRIPT": script,
    }
    pieces = page.joinpath("page.html").read_text("utf-8").split("@")
    # Odd pieces are the names between the marks: filled in one pass, data is never searched.
    return "".join(
        parts[piece] if place % 2 and piece in parts else piece
        for place, piece in enumerate(pieces)
    )


def as_script_data(value: Any) -> str:
    """JSON that cannot end the element that holds it.

    Example:
        >>> as_script_data("</script>")
        '"\\\\u003c/script\\\\u003e"'
    """
    text = json.dumps(value)
    for character, escape in _ESCAPES.items():
        text = text.replace(character, escape)
    return text


def _hash(text: str) -> str:
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return f"'sha256-{digest}'"
