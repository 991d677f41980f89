"""The report in a real browser: what sorts, filters, opens and slides. Needs Chromium; it is not downloaded."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from analysis.records.store import load, read_manifest
from analysis.report.page import write_report
from analysis.tables.comparisons import comparisons

sync_api = pytest.importorskip("playwright.sync_api", reason="install playwright (pip install '.[dev]')")

Helpers = dict[str, Callable[..., Any]]
Runner = Callable[..., Path]
PHONE = {"width": 360, "height": 740}
EVIL = "<img src=x onerror=alert(1)>.png"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        pytest.skip(f"no browser: none of {', '.join(names)} is on the PATH")
    with sync_api.sync_playwright() as playwright:
        # a container's root user has no sandbox; the page is our own
        opened = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def run_dir(make_run: Runner, helpers: Helpers) -> Path:
    folder = make_run(images=("a.png", "b.png", EVIL))
    for scheme in ("fp32", "pams:w4a4", "cadyq"):
        helpers["view"](folder, "edsr", scheme)
        helpers["view"](folder, "edsr", scheme, "b.png")
    return folder


@pytest.fixture
def open_page(browser: Any, run_dir: Path) -> Iterator[Callable[..., Any]]:
    """A function that opens the report; nothing may be written to the console or asked of a network."""
    complaints: list[str] = []
    context = browser.new_context()

    def build(viewport: dict[str, int] | None = None, fragment: str = "") -> Any:
        df = load(run_dir)
        path = write_report(df, comparisons(df), read_manifest(run_dir), run_dir)
        page = context.new_page()
        if viewport:
            page.set_viewport_size(viewport)
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("dialog", lambda dialog: complaints.append(f"dialog {dialog.message}"))
        page.on("request", lambda asked: asked.url.startswith(("file:", "data:")) or complaints.append(asked.url))
        page.goto(path.as_uri() + fragment)
        return page

    yield build
    context.close()
    assert complaints == []


def column(page: Any, number: int) -> list[str]:
    rows = page.locator("main table.records").first.locator("tbody tr:not([hidden])")
    return [str(text) for text in rows.locator(f"td:nth-child({number})").all_inner_texts()]


def heading(page: Any, text: str) -> tuple[Any, int]:
    heads = page.locator("main table.records").first.locator("th")
    number = heads.all_inner_texts().index(text)
    return heads.nth(number), number + 1


def test_sorting(open_page: Callable[..., Any]) -> None:
    page = open_page()
    head, number = heading(page, "PSNR (dB)")
    head.get_by_role("button").click()
    values = [float(text) for text in column(page, number)]
    assert values == sorted(values) and head.get_attribute("aria-sort") == "ascending"
    head.get_by_role("button").press("Enter")
    assert [float(text) for text in column(page, number)] == sorted(values, reverse=True)
    head, number = heading(page, "FAB (bits)")
    head.get_by_role("button").click()
    texts = column(page, number)
    assert texts[-1] == texts[-2] == "\u2013"  # what has no value stays last
    assert [float(text) for text in texts[:-2]] == sorted(float(text) for text in texts[:-2])


def test_filtering(open_page: Callable[..., Any]) -> None:
    page = open_page()
    rows = page.locator("main table.records").first.locator("tbody tr")
    total = rows.count()
    page.get_by_role("searchbox").first.fill("CADYQ b100")
    assert column(page, 1) == ["cadyq", "cadyq"] and set(column(page, 3)) == {"B100"}
    assert page.locator("#tables output").first.inner_text() == f"2 of {total} rows"
    page.get_by_role("searchbox").first.fill("")
    assert len(column(page, 1)) == total


def test_filters_of_the_overview(open_page: Callable[..., Any]) -> None:
    page = open_page()
    table = page.locator(".overview table")
    names = table.locator("tbody tr:not([hidden]) td:first-child")
    page.locator("select[data-filter=backbone]").select_option("carn_m")
    assert set(table.locator("tbody tr:not([hidden]) td:nth-child(2)").all_inner_texts()) == {"carn_m"}
    page.locator("select[data-filter=scheme]").select_option(label="pams")
    assert names.all_inner_texts() == ["pams:w8a8", "pams:w4a4"]
    page.locator("select[data-filter=scheme]").select_option(label="dynamic bits")
    assert names.all_inner_texts() == ["cadyq"]
    page.get_by_label("B100").first.uncheck()
    assert not any("B100" in text for text in table.locator("th:visible").all_inner_texts())
    table.locator("tbody a:visible").first.click()
    assert "cadyq" in page.get_by_role("dialog").locator("h2").inner_text()


def test_the_overview_is_not_cut_off(open_page: Callable[..., Any]) -> None:
    page = open_page({"width": 1280, "height": 800})
    wide = "[...document.querySelectorAll('.scroll')].filter(e => e.scrollWidth > e.clientWidth).length"
    assert page.evaluate(wide) == 0
    head = page.locator("#overview figure, .answer").first
    assert head.bounding_box()["y"] < 800


def test_a_row_opens_its_record(open_page: Callable[..., Any]) -> None:
    page = open_page()
    page.locator("main tr[data-cell]").nth(3).locator("td").nth(5).click()
    dialog = page.get_by_role("dialog")
    assert "mode image" in dialog.locator("h2").inner_text()
    assert "records/edsr__pams-w4a4__x4__Set5__image.parquet" in dialog.inner_text() and "#cell-edsr__pams" in page.url
    names = dialog.locator("tbody td:first-child")
    assert names.all_inner_texts() == ["a.png", "b.png", EVIL]
    values = [float(text) for text in dialog.locator("tbody td:nth-child(2)").all_inner_texts()]
    mean = float(dialog.locator("tfoot td").first.inner_text())
    assert mean == pytest.approx(sum(values) / 3, abs=2e-3)
    dialog.get_by_role("button", name="PSNR (dB)").first.click()
    assert [float(text) for text in dialog.locator("tbody td:nth-child(2)").all_inner_texts()] == sorted(values)
    page.keyboard.press("Escape")
    page.wait_for_function("!location.hash.includes('cell')")  # the browser tells of the closing after it
    assert dialog.count() == 0


def test_a_link_to_a_record(open_page: Callable[..., Any]) -> None:
    page = open_page(fragment="#cell-edsr__cadyq__x4__B100__image")
    assert "cadyq" in page.get_by_role("dialog").locator("h2").inner_text()


def shares(page: Any) -> list[float]:
    """How much of each picture the slider shows, by its clip."""
    found = page.eval_on_selector_all(
        "#stage > :not(.edge)", "all => all.map(e => 100 - parseFloat(e.style.clipPath.split(' ')[1] || '0'))"
    )
    return [round(float(value), 3) for value in found]


def test_the_slider_slides(open_page: Callable[..., Any]) -> None:
    page = open_page()
    slider, state = page.locator("#view-slider"), page.locator("#view-state")
    slider.focus()
    page.keyboard.press("Home")
    assert shares(page) == [100, 0, 0, 0, 0] and state.inner_text() == "LR"
    page.keyboard.press("ArrowRight")
    assert shares(page) == [100, 5, 0, 0, 0]
    assert state.inner_text() == "left A: edsr \u00b7 pams:w4a4, right LR"
    assert slider.get_attribute("aria-valuetext") == state.inner_text()
    page.keyboard.press("End")
    assert shares(page) == [100] * 5 and state.inner_text().startswith("bits of edsr \u00b7 cadyq, mean")
    page.get_by_role("button", name="SR of B").click()
    assert shares(page) == [100, 100, 100, 0, 0]


def test_choices_of_the_viewer(open_page: Callable[..., Any]) -> None:
    page = open_page()
    before = page.locator("#stage img").first.get_attribute("src")
    page.get_by_label("LR enlarged by").select_option("smooth")
    assert page.locator("#stage img").first.get_attribute("src") != before
    assert page.eval_on_selector_all("#stage img", "all => all.every(e => e.complete && e.naturalWidth > 0)")
    assert page.locator("#stage rect.tile").count() == 36
    page.get_by_label("Layer").select_option(label="<b>second")
    assert set(page.locator("#stage text").all_text_contents()) <= {"4", "6", "8"}
    page.locator("#view-of").select_option("a")
    assert set(page.locator("#stage text").all_text_contents()) == {"8"}
    page.get_by_label("First network").select_option(label="edsr \u00b7 fp32")
    page.locator("#view-image").select_option(label="Set5 \u00b7 b.png")
    assert page.locator("#view-facts tbody tr").first.inner_text().split("\t")[1] == "edsr \u00b7 fp32"
    page.locator("#view-facts a").first.click()
    assert "fp32" in page.get_by_role("dialog").locator("h2").inner_text()


@pytest.mark.parametrize("viewport", [PHONE, {"width": 1280, "height": 800}])
def test_the_page_never_scrolls_sideways(
    open_page: Callable[..., Any], viewport: dict[str, int], run_dir: Path, helpers: Helpers
) -> None:
    page = open_page(viewport)
    assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]
    page.locator("main tr[data-cell] a").first.click()
    assert page.evaluate("document.getElementById('record').scrollWidth") <= viewport["width"]


def test_without_crops_the_page_says_so(open_page: Callable[..., Any], run_dir: Path) -> None:
    for path in (run_dir / "artifacts" / "crops").iterdir():
        path.unlink()
    page = open_page()
    assert "holds no crops" in page.locator("#viewer").inner_text() and page.locator("#view-slider").count() == 0
