"""The report in a real browser: no errors, no requests, no sideways scrolling; tables sort; both colour schemes."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

import pytest
from study_pages import rendered

from everypool.study import report

sync_api = pytest.importorskip("playwright.sync_api")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]


@pytest.fixture(scope="module")
def addresses(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("pages")
    for name in ("one", "several"):
        report.write(folder / f"{name}.html", rendered(name)[1])
    return {path.stem: path.as_uri() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield started
        started.close()


class Tab:
    """A page of the browser, and what went wrong in it."""

    def __init__(self, browser: Any, address: str, **settings: Any) -> None:
        self.context = browser.new_context(**settings)
        self.page = self.context.new_page()
        self.faults: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.faults.append(message.text))
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(address)

    def column(self, table: int, column: int) -> list[str]:
        """Its texts in the order shown."""
        return self.page.evaluate(
            "([t, c]) => [...document.querySelectorAll('table')[t].tBodies[0].rows].map(row => row.cells[c].innerText.trim())",
            [table, column],
        )


@pytest.fixture(params=["one", "several"])
def tab(request: pytest.FixtureRequest, browser: Any, addresses: dict[str, str]) -> Iterator[Tab]:
    opened = Tab(browser, addresses[request.param])
    yield opened
    opened.context.close()


def test_the_page_is_quiet_and_asks_for_nothing(tab: Tab):
    tab.page.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true; })")
    tab.page.locator("th button").first.click()
    tab.page.wait_for_load_state("networkidle")
    assert tab.faults == []
    assert len([url for url in tab.requests if not url.startswith("data:")]) == 1
    assert tab.requests[0].startswith("file://")


def test_the_policy_keeps_requests_in(browser: Any, addresses: dict[str, str]):
    tab = Tab(browser, addresses["one"])
    refused = tab.page.evaluate(
        "() => new Promise(done => { addEventListener('securitypolicyviolation', event => done(event.effectiveDirective));"
        " new Image().src = 'http://127.0.0.1:9/x.png'; setTimeout(() => done('nothing'), 2000); })"
    )
    assert refused == "img-src"
    tab.context.close()


@pytest.mark.parametrize("width", [360, 1280])
def test_nothing_is_wider_than_the_screen(tab: Tab, width: int):
    tab.page.set_viewport_size({"width": width, "height": 800})
    tab.page.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true; })")
    assert tab.page.evaluate("document.documentElement.scrollWidth") <= width


def test_letters_in_figures_can_be_read_on_a_phone(browser: Any, addresses: dict[str, str]):
    tab = Tab(browser, addresses["one"], viewport={"width": 360, "height": 800})
    sizes = tab.page.evaluate(
        "[...document.querySelectorAll('svg text')].map(text => parseFloat(getComputedStyle(text).fontSize)"
        " * text.ownerSVGElement.getBoundingClientRect().width / text.ownerSVGElement.viewBox.baseVal.width)"
    )
    assert min(sizes) >= 13.5
    tab.context.close()


def test_every_drawing_and_picture_has_a_name(tab: Tab):
    tab.page.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true; })")
    drawings = tab.page.locator("svg, img").count()
    assert drawings > 0
    assert tab.page.get_by_role("img", name=":").or_(tab.page.get_by_role("img", name="sample")).count() == drawings


def test_columns_sort_by_their_numbers(browser: Any, addresses: dict[str, str]):
    tab = Tab(browser, addresses["one"])
    heads = tab.page.locator("thead th")
    for column in (1, heads.count() - 1):
        before = tab.column(0, column)
        for direction in ("ascending", "descending"):
            heads.nth(column).get_by_role("button").click()
            assert heads.nth(column).get_attribute("aria-sort") == direction
            after = tab.column(0, column)
            numbers = [float(text.split()[0].replace(",", "")) for text in after]
            assert numbers == sorted(numbers, reverse=direction == "descending")
            assert sorted(after) == sorted(before)
    assert [heads.nth(i).get_attribute("aria-sort") for i in range(2)] == [None, None]  # one column at a time
    tab.context.close()


def test_keys_sort_words_and_what_is_unknown_comes_last(browser: Any, addresses: dict[str, str]):
    tab = Tab(browser, addresses["several"])
    heads = tab.page.locator("table").first.locator("thead th")

    def press(text: str) -> int:
        names = heads.all_inner_texts()
        column = next(i for i, name in enumerate(names) if name.startswith(text))
        heads.nth(column).get_by_role("button").focus()
        tab.page.keyboard.press("Enter")
        return column

    p = press("p, corrected")
    assert tab.column(0, p)[-2:] == ["—", "—"]
    press("p, corrected")
    assert tab.column(0, p)[-2:] == ["—", "—"]
    claim = press("claim")
    assert tab.column(0, claim) == ["C2", "C2", "C2", "C3", "C10"]
    tab.context.close()


def test_the_schemes_differ(browser: Any, addresses: dict[str, str]):
    tab = Tab(browser, addresses["one"])
    colours = []
    for scheme in ("light", "dark"):
        tab.page.emulate_media(color_scheme=scheme)
        script = "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.querySelector('svg text')).fill]"
        colours.append(tab.page.evaluate(script))
    assert all(light != dark for light, dark in zip(*colours, strict=True))
    tab.context.close()


def test_links_and_printing_open_sections(browser: Any, addresses: dict[str, str]):
    tab = Tab(browser, addresses["several"])
    sections = tab.page.locator("details.study")
    states = "all => all.map(one => one.open)"
    assert sections.evaluate_all(states) == [False] * 3
    tab.page.locator("nav").get_by_role("link", name="second").click()
    tab.page.wait_for_function("document.querySelectorAll('details.study')[1].open")
    assert sections.evaluate_all(states) == [False, True, False]
    tab.page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert sections.evaluate_all(states) == [True] * 3
    tab.context.close()


def test_without_scripts_the_page_is_complete(browser: Any, addresses: dict[str, str]):
    tab = Tab(browser, addresses["several"], java_script_enabled=False)
    assert tab.page.locator("th button").count() == 0
    tab.page.locator("details.study > summary").nth(1).click()
    shown = tab.page.locator("details.study").nth(1)
    assert shown.locator("table").is_visible()
    assert shown.locator("svg").first.is_visible()
    tab.context.close()
