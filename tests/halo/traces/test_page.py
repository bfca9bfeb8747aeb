"""The report's page in a browser: drawn, within its policy, at desktop and phone width, and quiet
whatever the traces hold. Needs `playwright` and a Chromium of the system."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from halo.trace_report.build import ReportOptions, build_report
from halo.trace_report.html import render_html

pytestmark = pytest.mark.live

NASTY = "</script><script>window.owned=1</script><img src=x onerror='window.owned=2'>{a|b}\u202e"
WIDTHS = {"desktop": (1280, 900), "phone": (390, 844)}


def _talk(number: int) -> dict[str, Any]:
    name = NASTY if number % 3 == 0 else "search"
    call = {"id": "c", "function": {"name": name, "arguments": f'{{"q": "{number}"}}'}}
    messages: list[dict[str, Any]] = [{"role": "user", "content": NASTY}]
    usage: list[dict[str, Any]] = []
    for turn in range(6):
        messages.append({"role": "assistant", "content": NASTY, "tool_calls": [call]})
        messages.append({"role": "tool", "tool_call_id": "c", "content": f"{NASTY} {'x ' * 900}"})
        usage.append(
            {
                "prompt_tokens": 1500 + 700 * turn,
                "completion_tokens": 60 + number,
                "prompt_tokens_details": {"cached_tokens": 0 if turn == 3 else 1400 + 600 * turn},
            }
        )
    return {
        "id": f"{NASTY} {number}", "model": NASTY, "messages": messages, "usage": usage,
        "success": number % 2 == 0,
    }  # fmt: skip


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    traces = folder / "t.jsonl"
    traces.write_text("\n".join(json.dumps(_talk(number)) for number in range(40)))
    file = folder / "report.html"
    file.write_text(render_html(build_report([traces], ReportOptions(with_texts=True))), "utf-8")
    return file


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("no chromium on this machine")
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.mark.parametrize("width", WIDTHS)
def test_the_page(browser: Any, page_file: Path, width: str) -> None:
    columns, rows = WIDTHS[width]
    page = browser.new_page(viewport={"width": columns, "height": rows})
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.goto(page_file.as_uri())
    page.wait_for_selector("body[data-ready=yes]")
    assert said == []
    assert requests == [page_file.as_uri()]
    assert page.evaluate("window.owned") is None
    assert page.evaluate("document.images.length") == 0
    # nothing is wider than the window: tables scroll within themselves
    assert page.evaluate("document.documentElement.scrollWidth") <= columns
    for chart in ("distribution-chart", "tool-chart", "label-chart", "turn-chart"):
        assert _is_painted(page, chart), chart
    assert page.locator("#worst tr").count() == 21
    page.locator("#worst button").nth(2).click()
    page.wait_for_function("location.hash === '#trace-2'")
    assert page.locator("#turns .turn").count() == 6
    assert NASTY[:40] in page.locator("#turns pre").first.inner_text()
    found = page.locator("#turns .finding").all_inner_texts()
    assert any("Cache losses" in each for each in found)
    box = page.locator("#turn-chart").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.set_viewport_size({"width": columns - 40, "height": rows})
    page.wait_for_function("document.querySelector('#turn-chart canvas').clientWidth < innerWidth")
    assert said == []
    assert page.evaluate("window.owned") is None
    page.close()


def _is_painted(page: Any, chart: str) -> bool:
    return bool(
        page.evaluate(
            """(id) => {
                const canvas = document.querySelector(`#${id} canvas`);
                const pixels = canvas.getContext('2d')
                    .getImageData(0, 0, canvas.width, canvas.height).data;
                let drawn = 0;
                for (let i = 3; i < pixels.length; i += 4) drawn += pixels[i] > 0;
                return drawn > 500;
            }""",
            chart,
        )
    )
