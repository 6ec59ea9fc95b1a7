"""The HTML page in headless Chromium: what a person sees, clicks, types and hears of it."""

from __future__ import annotations

import functools
import math
import re
import shutil
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from leaderboard.sample_board import HOSTILE
from leaderboard.sample_board import sample_board as make_board

from prh_eval.leaderboard.board import Board, Row
from prh_eval.leaderboard.pages.page import html_page

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")

from selenium.webdriver.chrome.service import Service  # noqa: E402
from selenium.webdriver.common.action_chains import ActionChains  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.remote.webelement import WebElement  # noqa: E402
from selenium.webdriver.support.select import Select  # noqa: E402
from selenium.webdriver.support.wait import WebDriverWait  # noqa: E402

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
if not (CHROMIUM and DRIVER):
    pytest.skip("Chromium or ChromeDriver is not installed", allow_module_level=True)

FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-dev-shm-usage",
)  # fmt: skip

sample = functools.cache(make_board)


class Page:
    """A page in the browser, by what a person knows of it."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def js(self, code: str, *arguments: object) -> Any:
        return self.driver.execute_script(code, *arguments)

    def one(self, selector: str) -> WebElement:
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def all(self, selector: str) -> list[WebElement]:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def cdp(self, command: str, **arguments: object) -> Any:
        return self.driver.execute_cdp_cmd(command, arguments)

    def size(self, width: int, height: int) -> None:
        self.cdp(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=width < 500,
        )  # fmt: skip

    def media(self, **features: str) -> None:
        self.cdp(
            "Emulation.setEmulatedMedia",
            features=[{"name": n.replace("_", "-"), "value": v} for n, v in features.items()],
        )
        # The page hears of it before it is painted.
        self.driver.execute_async_script(
            "const done = arguments[0]; requestAnimationFrame(() => requestAnimationFrame(done))"
        )

    def names(self) -> list[str]:
        """Of the models that the table shows, from the top."""
        return self.js(
            "return [...document.querySelectorAll('#table tbody:first-of-type tr')]"
            ".filter(row => row.checkVisibility()).map(row => row.querySelector('bdi').textContent)"
        )

    def marks(self) -> dict[str, tuple[float, float]]:
        """Pixels of the marks that the plot shows, by model."""
        found = self.js(
            "return [...document.querySelectorAll('.mark')]"
            ".filter(mark => getComputedStyle(mark).display !== 'none')"
            ".map(mark => [+mark.dataset.row, +mark.querySelector('.ring').getAttribute('cx'),"
            " +mark.querySelector('.ring').getAttribute('cy')])"
        )
        rows = self.js("return JSON.parse(document.getElementById('data').textContent).rows")
        return {rows[int(row)]["name"]: (x, y) for row, x, y in found}

    def mark(self, row: int) -> WebElement:
        return self.one(f'.mark[data-row="{row}"]')

    def click_mark(self, row: int) -> None:
        ActionChains(self.driver).move_to_element(self.mark(row)).click().perform()

    def heading(self, label: str) -> WebElement:
        return next(
            th
            for th in self.all("#table thead th")
            if th.find_element(By.TAG_NAME, "button").get_attribute("textContent") == label
        )

    def tooltip(self) -> list[str]:
        """Its lines; none where it is not shown."""
        text = self.js(
            "const t = document.getElementById('tooltip');"
            "return t.checkVisibility() ? [...t.querySelectorAll('strong, span, dt, dd')]"
            ".map(part => part.textContent) : []"
        )
        return [line.replace("\u00a0", " ") for line in text]


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture
def opened(driver: Any, tmp_path: Path) -> Iterator[Callable[..., Page]]:
    """Opens a board; after the test, nothing was reported and nothing was asked for."""
    page = Page(driver)
    page.size(1280, 900)
    page.media()
    page.cdp("Emulation.setFocusEmulationEnabled", enabled=True)

    def open_board(board: Board | None = None) -> Page:
        file = tmp_path / "board.html"
        file.write_text(html_page(board or sample()), encoding="utf-8")
        driver.get(file.as_uri())
        return page

    yield open_board
    assert driver.get_log("browser") == []
    assert page.js("return performance.getEntriesByType('resource').map(e => e.name)") == []


def values(board: Board, label: str) -> dict[str, float | str | None]:
    """What a column sorts by, by model."""
    keys = {column.label: column.key for column in board.columns}
    read: dict[str, Callable[[Row], float | str | None]] = {
        "Model": lambda row: row.name,
        "Family": lambda row: row.family,
        "Parameters": lambda row: row.parameters,
        "Layer": lambda row: row.cells["prh_align"].layer,
        "Training tokens": lambda row: row.training_tokens,
        "Released": lambda row: row.release_date,
        "Kind": lambda row: row.kind,
        "Precision": lambda row: row.dtype,
        "Licence": lambda row: row.licence,
    }

    def value(row: Row) -> float | str | None:
        if label in keys:
            cell = row.cells.get(keys[label])
            return None if cell is None else cell.value
        return read[label](row)

    return {row.name: value(row) for row in board.rows}


def ordered(board: Board, label: str, direction: str) -> list[str]:
    """The models as the table should have them: missing last, equal ones as they were."""
    found = values(board, label)
    known = [name for name, value in found.items() if value is not None]
    # Stable both ways: sorted() keeps the order of equal values also when reversed.
    known = sorted(known, key=lambda name: found[name], reverse=direction == "descending")
    return known + [name for name, value in found.items() if value is None]


# ---------------------------------------------------------------- nothing leaves


def test_the_policy_stops_every_request_and_script(opened: Callable[..., Page]) -> None:
    page = opened()
    blocked = page.driver.execute_async_script(
        """
        const done = arguments[0];
        const found = [];
        document.addEventListener("securitypolicyviolation", (event) => {
          found.push(event.effectiveDirective);
          if (found.length === 4) done(found.sort());
        });
        new Image().src = "http://127.0.0.1:9/x.png";
        const script = document.createElement("script");
        script.textContent = "window.ran = true";
        document.body.append(script);
        const style = document.createElement("style");
        style.textContent = "body { color: red }";
        document.body.append(style);
        fetch("http://127.0.0.1:9/").catch(() => {});
        """
    )
    assert blocked == ["connect-src", "img-src", "script-src-elem", "style-src-elem"]
    assert page.js("return window.ran") is None
    page.driver.get_log("browser")  # has the four
    page.js("performance.clearResourceTimings()")


def test_hostile_names_are_shown_and_do_nothing(opened: Callable[..., Page]) -> None:
    board = sample(hostile=True)
    page = opened(board)
    assert page.names() == [row.name for row in board.rows]
    assert set(page.names()) >= set(HOSTILE)
    for row, model in enumerate(board.rows):
        if model.name in HOSTILE:
            page.js("arguments[0].focus()", page.mark(row))
            assert page.tooltip()[0] == model.name
            swatch = page.one(f'tr[data-row="{row}"] .swatch')
            assert swatch.get_attribute("aria-label") == f"Show {model.name} in the plot"
    # An alert would have failed every command above.
    assert page.js("return document.querySelectorAll('script').length") == 2
    assert page.all("main b, main img, main script") == []


# ---------------------------------------------------------------- the table


@pytest.mark.parametrize("how", ["click", "Enter", "Space"])
def test_sorting(opened: Callable[..., Page], how: str) -> None:
    board = sample()
    page = opened(board)
    headings = page.all("#table thead th")
    labels = [
        th.find_element(By.TAG_NAME, "button").get_attribute("textContent") for th in headings
    ]
    assert len(labels) == 14
    assert page.heading("DINOv2-giant").get_attribute("aria-sort") == "descending"
    assert page.names() == ordered(board, "DINOv2-giant", "descending")
    for label, th in zip(labels, headings, strict=True):
        button = th.find_element(By.TAG_NAME, "button")
        seen = []
        for _ in range(2):
            if how == "click":
                page.js("arguments[0].click()", button)
            else:
                page.js("arguments[0].focus()", button)
                ActionChains(page.driver).send_keys(Keys.ENTER if how == "Enter" else " ").perform()
            direction = th.get_attribute("aria-sort")
            assert direction is not None
            seen.append(direction)
            assert page.names() == ordered(board, label, direction), (label, direction)
            sorted_by = page.all("#table th[aria-sort]")
            assert len(sorted_by) == 1
        assert sorted(seen) == ["ascending", "descending"]


def test_the_first_click_brings_the_best_up(opened: Callable[..., Page]) -> None:
    page = opened()
    for label, best in (("GSM8K", "descending"), ("bits per byte", "ascending")):
        page.js("arguments[0].click()", page.heading(label).find_element(By.TAG_NAME, "button"))
        assert page.heading(label).get_attribute("aria-sort") == best


def test_text_is_sorted_with_its_numbers(opened: Callable[..., Page]) -> None:
    board = sample()
    rows = tuple(
        row.model_copy(update={"name": name})
        for row, name in zip(board.rows, ("m-10", "M-9", "m-1.4b", "é", None), strict=False)
        if name
    )
    page = opened(board.model_copy(update={"rows": rows}))
    page.heading("Model").find_element(By.TAG_NAME, "button").click()
    assert page.names() == ["é", "m-1.4b", "M-9", "m-10"]


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ({"text": "ORG1/"}, lambda row: row.name.startswith("org1/")),
        ({"text": "family 3 model-1"}, lambda row: row.name == "org3/model-1"),
        ({"text": "bfloat16 apache"}, lambda row: True),
        ({"text": "nothing has this"}, lambda row: False),
        ({"family": "Family 2"}, lambda row: row.family == "Family 2"),
        ({"kind": "instruct"}, lambda row: row.kind == "instruct"),
        ({"least": "0.3B"}, lambda row: row.parameters >= 3e8),
        ({"least": "300 m", "most": "1e9"}, lambda row: 3e8 <= row.parameters <= 1e9),
        ({"least": "300,000K", "most": "1000000000"}, lambda row: 3e8 <= row.parameters <= 1e9),
        (
            {"family": "Family 5", "kind": "base", "most": ".2B"},
            lambda row: row.family == "Family 5" and row.kind == "base" and row.parameters <= 2e8,
        ),
    ],
)
def test_filters(
    opened: Callable[..., Page], steps: dict[str, str], expected: Callable[[Row], bool]
) -> None:
    board = sample()
    page = opened(board)
    before = page.marks()
    for field, text in steps.items():
        if field in ("family", "kind"):
            Select(page.one(f"#{field}")).select_by_visible_text(text)
        else:
            page.one(f"#{field}").send_keys(text)
    wanted = [row.name for row in board.rows if expected(row)]
    assert page.names() == wanted
    assert page.one("#count").text == f"{len(wanted)} of 21 models shown"
    # The plot shows the same, and nothing moves.
    assert page.marks() == {name: at for name, at in before.items() if name in wanted}
    statistic = page.one("#statistic").text
    assert statistic.startswith("Of all models, not only those shown: ") == (len(wanted) < 21)
    page.one("#reset").click()
    assert len(page.names()) == 21 and page.marks() == before
    assert [page.one(f"#{id}").get_attribute("value") for id in ("text", "family", "least")] == [
        "", "", "",
    ]  # fmt: skip


def test_unknown_parameters_pass_no_bound(opened: Callable[..., Page]) -> None:
    board = sample()
    first = board.rows[0].model_copy(update={"parameters": None, "family": None})
    page = opened(board.model_copy(update={"rows": (first, *board.rows[1:])}))
    page.one("#most").send_keys("1T")
    assert page.names() == [row.name for row in board.rows[1:]]
    page.one("#reset").click()
    Select(page.one("#family")).select_by_visible_text("not stated")
    assert page.names() == [first.name]


@pytest.mark.parametrize("text", ["a lot", "1.4X", "-3", "1,4B", "1e999", "B", "1.2.3"])
def test_what_is_no_number_of_parameters_is_marked_and_ignored(
    opened: Callable[..., Page], text: str
) -> None:
    page = opened()
    field = page.one("#least")
    field.send_keys(text)
    assert field.get_attribute("aria-invalid") == "true"
    assert len(page.names()) == 21
    assert page.one("#count").text.startswith("21 of 21 models shown; parameters are a number")
    page.one("#reset").click()
    assert field.get_attribute("aria-invalid") is None
    assert page.one("#count").text == "21 of 21 models shown"


def test_bounds_are_of_the_size_of_the_models(opened: Callable[..., Page]) -> None:
    board = sample()
    sizes = [21_824 + 5_000 * at for at in range(21)]
    rows = tuple(
        row.model_copy(update={"parameters": size})
        for row, size in zip(board.rows, sizes, strict=True)
    )
    page = opened(board.model_copy(update={"rows": rows}))
    assert page.one("#least").get_attribute("placeholder") == "e.g. 21.8K"
    assert page.one("#most").get_attribute("placeholder") == "e.g. 122K"
    page.one("#least").send_keys("100K")
    assert page.names() == [r.name for r, n in zip(rows, sizes, strict=True) if n >= 100_000]


def test_the_count_is_announced(opened: Callable[..., Page]) -> None:
    page = opened()
    assert page.one("#count").get_attribute("aria-live") == "polite"
    assert page.one("#count").text == "21 of 21 models shown"


# ---------------------------------------------------------------- the plot


def axis(board: Board, label: str) -> str:
    """What a column is called beside the plot."""
    kinds = {column.label: column.kind for column in board.columns}
    return f"Alignment with {label}" if kinds.get(label) == "alignment" else label


def axis_values(board: Board, label: str) -> dict[str, float]:
    """Where models are along an axis, up to scale."""
    found = {name: value for name, value in values(board, label).items() if value is not None}
    if label in ("Parameters", "Training tokens"):
        return {name: math.log(float(value)) for name, value in found.items()}
    if label == "Released":
        return {name: float(date.fromisoformat(str(v)).toordinal()) for name, v in found.items()}
    return {name: float(value) for name, value in found.items()}


def test_marks_stand_where_the_scores_are(opened: Callable[..., Page]) -> None:
    board = sample()
    page = opened(board)
    options = [option.text for option in Select(page.one("#x")).options]
    assert options == [
        "Parameters", *(axis(board, c.label) for c in board.columns), "Training tokens", "Released",
    ]  # fmt: skip
    pairs = [("DINOv2-giant", "HellaSwag"), ("DINOv2-giant", "GSM8K"), ("Parameters", "GSM8K")]
    pairs += [("Released", "bits per byte"), ("Training tokens", "CLIP ViT-H")]
    for x, y in pairs:
        Select(page.one("#x")).select_by_visible_text(axis(board, x))
        Select(page.one("#y")).select_by_visible_text(axis(board, y))
        across, up = axis_values(board, x), axis_values(board, y)
        marks = page.marks()
        both = [name for name in across if name in up]
        assert set(marks) == set(both), (x, y)
        for side, wanted in ((0, across), (1, up)):
            numbers = np.array([wanted[name] for name in both])
            pixels = np.array([marks[name][side] for name in both])
            slope, start = np.polyfit(numbers, pixels, 1)
            assert np.allclose(slope * numbers + start, pixels, atol=0.01)
            assert slope > 0 if side == 0 else slope < 0  # up is better, and less in pixels
        box = page.one("#plot svg").size
        assert all(0 < px < box["width"] and 0 < py < box["height"] for px, py in marks.values())


def test_ticks_say_where_things_are(opened: Callable[..., Page]) -> None:
    board = sample()
    page = opened(board)
    marks = page.marks()
    scores = values(board, "DINOv2-giant")
    names = list(marks)
    numbers = np.array([scores[name] for name in names], dtype=float)
    slope, start = np.polyfit(numbers, [marks[name][0] for name in names], 1)
    ticks = page.js(
        "return [...document.querySelectorAll('#plot text[text-anchor=middle]')]"
        ".map(t => [t.textContent, +t.getAttribute('x')])"
    )
    assert len(ticks) >= 4
    for label, at in ticks:
        assert at == pytest.approx(slope * float(label) + start, abs=0.5)
    # Levels are at theirs: chance of HellaSwag.
    up = values(board, "HellaSwag")
    slope, start = np.polyfit([float(up[n] or 0) for n in names], [marks[n][1] for n in names], 1)
    levels = page.js(
        "return [...document.querySelectorAll('#plot line.level')]"
        ".filter(l => l.getAttribute('y1') === l.getAttribute('y2'))"
        ".map(l => +l.getAttribute('y1'))"
    )
    assert levels == [pytest.approx(slope * 0.25 + start, abs=0.5)]


def test_error_bars_have_their_lengths(opened: Callable[..., Page]) -> None:
    board = sample()
    page = opened(board)
    marks = page.marks()
    scores = values(board, "DINOv2-giant")
    numbers = [float(scores[name] or 0) for name in marks]
    slope, _ = np.polyfit(numbers, [x for x, _ in marks.values()], 1)
    bars = page.js(
        "return [...document.querySelectorAll('.mark')].map(mark =>"
        " [...mark.querySelectorAll('line')].map(l => ['x1', 'x2', 'y1', 'y2']"
        ".map(a => +l.getAttribute(a))))"
    )
    assert len(bars) == 21
    for across, up in bars:
        assert across[1] - across[0] == pytest.approx(2 * 0.005 * slope, rel=1e-6)
        assert across[2] == across[3]
        assert up[0] == up[1] and up[2] > up[3]
    # A column without errors has no bar.
    Select(page.one("#y")).select_by_visible_text("bits per byte")
    assert page.js("return document.querySelectorAll('.mark line').length") == 14


def with_references(spans: float) -> Board:
    """One control and one level of chance, spans of the models below the models in both scores."""
    board = sample()
    below = {}
    for key in ("prh_align", "hellaswag"):
        cells = [row.cells[key] for row in board.rows if key in row.cells]
        low = min(cell.value - (cell.stderr or 0) for cell in cells)
        high = max(cell.value + (cell.stderr or 0) for cell in cells)
        below[key] = low - spans * (high - low)
    cells = {
        key: board.rows[0].cells[key].model_copy(update={"value": value, "stderr": None})
        for key, value in below.items()
    }
    control = board.controls[0].model_copy(update={"cells": cells})
    columns = tuple(
        column.model_copy(update={"chance": below.get(column.key), "alignment": None})
        for column in board.columns
    )
    return board.model_copy(update={"controls": (control,), "columns": columns})


@pytest.mark.parametrize(
    ("spans", "levels", "controls", "said"),
    [
        (0.3, 2, 1, "Dashed lines are what chance would score. Hollow grey marks are controls."),
        (0.9, 0, 1, "Hollow grey marks are controls."),
        (1.1, 0, 0, "Controls too far off to be drawn: model-0, untrained."),
    ],
)
def test_the_caption_says_what_is_drawn(
    opened: Callable[..., Page], spans: float, levels: int, controls: int, said: str
) -> None:
    page = opened(with_references(spans))
    assert page.one("#references").text == said
    assert len(page.all("svg .level")) == levels
    found = page.all(".mark.control")
    assert len(found) == controls
    assert len(page.all(".mark")) == 21 + controls
    for mark in found:
        page.js("document.getElementById('plot').scrollIntoView({block: 'center'})")
        ActionChains(page.driver).move_to_element(mark).click().perform()
        assert page.tooltip()[:2] == ["model-0, untrained", "untrained weights"]
        assert page.all("tr.selected") == []
        style = "return getComputedStyle(arguments[0].querySelector('.glyph')).fill"
        assert page.js(style, mark) == "none"
        # It is there whatever is filtered.
        page.one("#text").send_keys("nothing has this")
        assert mark.is_displayed()


def test_larger_models_have_larger_marks(opened: Callable[..., Page]) -> None:
    board = sample()
    page = opened(board)
    sizes = page.js(
        "return [...document.querySelectorAll('.mark')].map(mark =>"
        " [+mark.dataset.row, +mark.querySelector('.ring').getAttribute('r')])"
    )
    by_size = sorted(sizes, key=lambda pair: board.rows[int(pair[0])].parameters or 0)
    radii = [radius for _, radius in by_size]
    assert radii == sorted(radii) and radii[0] < radii[-1]


def test_families_differ_in_colour_and_shape(opened: Callable[..., Page]) -> None:
    board = sample(families=56, of_each=1)
    page = opened(board)
    looks = page.js(
        "return [...document.querySelectorAll('.legend button')].map(button => ["
        "button.textContent, getComputedStyle(button.querySelector('svg')).color,"
        "button.querySelector('path').getAttribute('d')])"
    )
    assert len({tuple(look[1:]) for look in looks}) == 56
    assert len({look[1] for look in looks[:7]}) == len({look[2] for look in looks[:7]}) == 7
    assert [look[0] for look in looks] == sorted({row.family or "" for row in board.rows})


def test_the_statistics_are_the_boards(opened: Callable[..., Page]) -> None:
    board = sample()
    page = opened(board)
    labels = {column.key: column.label for column in board.columns}
    for each in board.associations:
        Select(page.one("#x")).select_by_visible_text(axis(board, labels[each.x]))
        Select(page.one("#y")).select_by_visible_text(labels[each.y])
        text = page.one("#statistic").text.replace("\u00a0", " ")
        assert text.startswith(f"Spearman {each.spearman.value:.2f} (95 % ")
        p = f"p = {each.p:.3f}" if each.primary else f"p after Holm = {each.p_holm:.3f}"
        assert f"over {each.models} models of 7 families; {p}; " in text
        assert text.endswith("the primary hypothesis." if each.primary else "exploratory.")
    Select(page.one("#x")).select_by_visible_text("Released")
    assert page.one("#statistic").text == "No statistic was made for this pair of columns."


def expected_tooltip(row: Row) -> list[str]:
    x, y = row.cells["prh_align"], row.cells["hellaswag"]
    size = row.parameters or 0
    shown = f"{size / 1e9:.3g}B" if size >= 1e9 else f"{size / 1e6:.3g}M"
    return [
        row.name, row.family or "",
        "Alignment with DINOv2-giant", f"{x.value:.3f} ± {x.stderr:.3f}",
        "HellaSwag", f"{y.value:.3f} ± {y.stderr:.3f}", "Parameters", shown,
    ]  # fmt: skip


def test_pointing_at_a_mark_tells_its_numbers(opened: Callable[..., Page]) -> None:
    board = sample()
    page = opened(board)
    page.js("document.getElementById('plot').scrollIntoView({block: 'center'})")
    for row in (0, 7, 20):
        ActionChains(page.driver).move_to_element(page.mark(row)).perform()
        assert page.tooltip() == expected_tooltip(board.rows[row])
        box, plot = page.one("#tooltip").rect, page.one("#plot").rect
        assert box["x"] >= plot["x"] and box["x"] + box["width"] <= plot["x"] + plot["width"] + 1
        assert "near" in (page.one(f'tr[data-row="{row}"]').get_attribute("class") or "")
    ActionChains(page.driver).send_keys(Keys.ESCAPE).perform()
    assert page.tooltip() == []
    ActionChains(page.driver).move_to_element(page.one("h2#plot-title")).perform()
    assert page.tooltip() == []


def test_the_keyboard_goes_from_mark_to_mark(opened: Callable[..., Page]) -> None:
    board = sample()
    page = opened(board)
    marks = page.marks()
    assert page.js("return document.querySelectorAll('.mark[tabindex=\"0\"]').length") == 1
    page.one("#y").send_keys(Keys.TAB)
    name = "return document.activeElement.getAttribute('aria-label').split(', ')[0]"
    rows = {row.name: row for row in board.rows}
    across = sorted(marks, key=lambda each: marks[each][0])
    for at, expected in enumerate(across):
        assert page.js(name) == expected
        assert page.tooltip() == expected_tooltip(rows[expected])
        assert page.js("return document.querySelectorAll('.mark[tabindex=\"0\"]').length") == 1
        if at < len(across) - 1:
            ActionChains(page.driver).send_keys(Keys.ARROW_RIGHT).perform()
    ActionChains(page.driver).send_keys(Keys.ARROW_RIGHT).perform()
    assert page.js(name) == across[-1]
    ActionChains(page.driver).send_keys(Keys.ARROW_LEFT).perform()
    assert page.js(name) == across[-2]
    ActionChains(page.driver).send_keys(Keys.HOME).perform()
    assert page.js(name) == across[0]
    up = sorted(marks, key=lambda each: -marks[each][1])
    here = up.index(across[0])
    ActionChains(page.driver).send_keys(Keys.ARROW_UP).perform()
    assert page.js(name) == up[here + 1]
    ActionChains(page.driver).send_keys(Keys.ARROW_DOWN, Keys.END).perform()
    assert page.js(name) == across[-1]
    # Enter marks the row; the next tab leaves the plot.
    ActionChains(page.driver).send_keys(Keys.ENTER).perform()
    (chosen,) = page.all("tr.selected")
    assert chosen.find_element(By.TAG_NAME, "bdi").get_attribute("textContent") == across[-1]
    ActionChains(page.driver).send_keys(Keys.TAB).perform()
    assert page.js("return document.activeElement.closest('.legend') !== null")
    assert page.tooltip() == []


def test_plot_and_table_mark_the_same_model(opened: Callable[..., Page]) -> None:
    page = opened()
    page.js("document.getElementById('plot').scrollIntoView({block: 'center'})")
    page.click_mark(20)
    assert [row.get_attribute("data-row") for row in page.all("tr.selected")] == ["20"]
    assert page.mark(20).get_attribute("aria-selected") == "true"
    # The table has scrolled to it, whether gently or at once.
    page.media(prefers_reduced_motion="reduce")
    page.click_mark(0)
    page.click_mark(20)
    row, box = page.one("tr.selected").rect, page.one(".scroll").rect
    assert box["y"] <= row["y"] and row["y"] + row["height"] <= box["y"] + box["height"] + 1
    page.click_mark(20)
    assert page.all("tr.selected") == []
    # And from the table: by the button, and by the row.
    button = page.one('tr[data-row="3"] .swatch')
    page.js("arguments[0].focus()", button)
    ActionChains(page.driver).send_keys(Keys.ENTER).perform()
    assert button.get_attribute("aria-pressed") == "true"
    assert page.mark(3).get_attribute("aria-selected") == "true"
    assert page.tooltip() == expected_tooltip(sample().rows[3])
    assert page.js("return document.activeElement.dataset.row") == "3"
    page.one('tr[data-row="4"] td').click()
    assert page.mark(3).get_attribute("aria-selected") == "false"
    assert page.mark(4).get_attribute("aria-selected") == "true"


def test_the_legend_hides_families(opened: Callable[..., Page]) -> None:
    board = sample()
    page = opened(board)
    button = page.all(".legend button")[2]
    assert button.text == "Family 2" and button.get_attribute("aria-pressed") == "true"
    button.click()
    assert button.get_attribute("aria-pressed") == "false"
    wanted = [row.name for row in board.rows if row.family != "Family 2"]
    assert page.names() == wanted and set(page.marks()) == set(wanted)
    assert page.one("#count").text == "18 of 21 models shown"
    button.click()
    assert len(page.names()) == 21
    button.click()
    page.one("#reset").click()
    assert button.get_attribute("aria-pressed") == "true" and len(page.names()) == 21


@pytest.mark.parametrize("models", [0, 1, 2])
def test_few_models(opened: Callable[..., Page], models: int) -> None:
    board = sample()
    page = opened(board.model_copy(update={"rows": board.rows[:models]}))
    assert len(page.names()) == len(page.marks()) == models
    assert page.one("#nothing").is_displayed() == (models == 0)
    for x in range(len(Select(page.one("#x")).options)):
        Select(page.one("#x")).select_by_index(x)
    assert "NaN" not in page.js("return document.getElementById('plot').innerHTML")


def test_equal_scores_and_no_columns(opened: Callable[..., Page]) -> None:
    board = sample()
    rows = tuple(
        row.model_copy(
            update={
                "cells": {
                    key: cell.model_copy(update={"value": 0.0, "stderr": None})
                    for key, cell in row.cells.items()
                }
            }
        )
        for row in board.rows
    )
    page = opened(board.model_copy(update={"rows": rows}))
    assert len(page.marks()) == 21
    assert "NaN" not in page.js("return document.getElementById('plot').innerHTML")
    page = opened(board.model_copy(update={"columns": (), "associations": ()}))
    assert len(page.names()) == 21


# ---------------------------------------------------------------- light, dark, phone, paper


CONTRASTS = """
const found = [];
for (const node of document.querySelectorAll("body *")) {
  const own = [...node.childNodes].some(c => c.nodeType === 3 && c.textContent.trim());
  if (!own || !node.checkVisibility() || node.closest(".hidden, script, style, .skip")) continue;
  const style = getComputedStyle(node);
  let ground = node;
  while (ground && getComputedStyle(ground).backgroundColor === "rgba(0, 0, 0, 0)") {
    ground = ground.parentElement;
  }
  const colour = node instanceof SVGElement ? style.fill : style.color;
  found.push([node.textContent.slice(0, 30), colour, getComputedStyle(ground).backgroundColor]);
}
return found;
"""


def luminance(colour: str) -> float:
    """Relative luminance by WCAG 2.2 of a colour as Chromium computes it."""
    found = re.fullmatch(r"rgb\((\d+), (\d+), (\d+)\)", colour)
    assert found, colour
    parts = [int(part) / 255 for part in found.groups()]
    red, green, blue = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_has_contrast(opened: Callable[..., Page], scheme: str) -> None:
    page = opened()
    page.media(prefers_color_scheme=scheme)
    page.one("details summary").click()
    page.js("arguments[0].focus()", page.mark(0))
    page.mark(0).send_keys(Keys.ENTER)
    page.all(".legend button")[0].click()
    found = page.js(CONTRASTS)
    assert len(found) > 200
    for text, colour, ground in found:
        low, high = sorted([luminance(colour), luminance(ground)])
        assert (high + 0.05) / (low + 0.05) >= 4.5, (text, colour, ground)


def test_dark_mode_follows_the_system_until_it_is_chosen(opened: Callable[..., Page]) -> None:
    page = opened()
    ground = "return getComputedStyle(document.body).backgroundColor"

    def is_dark() -> bool:
        return luminance(page.js(ground)) < 0.1

    button = page.one("#theme")
    for scheme in ("light", "dark"):
        page.media(prefers_color_scheme=scheme)
        assert is_dark() == (scheme == "dark")
        assert button.get_attribute("aria-pressed") == str(is_dark()).lower()
    button.click()
    assert not is_dark() and button.get_attribute("aria-pressed") == "false"
    page.media(prefers_color_scheme="light")
    button.click()
    assert is_dark() and button.get_attribute("aria-pressed") == "true"


@pytest.mark.parametrize("hostile", [False, True])
def test_a_phone(opened: Callable[..., Page], hostile: bool) -> None:
    board = sample(hostile=hostile)
    if hostile:
        first = board.rows[0].model_copy(update={"name": "m" * 200, "family": "f" * 200})
        columns = tuple(c.model_copy(update={"label": "l" * 200 + c.key}) for c in board.columns)
        changes = {"rows": (first, *board.rows[1:]), "title": "t" * 200, "remarks": ("r" * 300,)}
        board = board.model_copy(update=changes | {"columns": columns})
    page = opened()
    page.size(360, 740)
    page = opened(board)
    page.one("details summary").click()
    assert page.js("return document.documentElement.scrollWidth") == 360
    assert len(page.all(".mark")) == 21
    small = page.js(
        "return [...document.querySelectorAll('button, input, select, summary')].filter(each => {"
        "const box = each.getBoundingClientRect(); return box.width < 40 || box.height < 40})"
        ".map(each => each.outerHTML)"
    )
    assert small == []
    names = page.js("return [...document.querySelectorAll('svg .axis')].map(e => e.textContent)")
    cut = page.js(
        "return [...document.querySelectorAll('svg .axis')].filter(each => {"
        "const box = each.getBoundingClientRect(); return box.left < 0 || box.right > 360}).length"
    )
    assert cut == 0
    assert any("…" in name for name in names) == hostile
    # The first column stays where the table is scrolled; half of the width is for the others.
    page.js("document.querySelector('.scroll').scrollLeft = 300")
    name = page.one("#table tbody th").rect
    box = page.one(".scroll").rect
    assert box["x"] <= name["x"] < box["x"] + 3
    assert name["width"] < 0.6 * box["width"]
    assert page.one(".scroll").rect["width"] <= 360


def test_no_motion_where_none_is_wanted(opened: Callable[..., Page]) -> None:
    page = opened()
    moving = (
        "return [...document.querySelectorAll('*')].filter(e => {const s = getComputedStyle(e);"
        "return s.scrollBehavior === 'smooth' || s.transitionDuration !== '0s'"
        " || s.animationName !== 'none'}).length"
    )
    page.media(prefers_reduced_motion="reduce")
    assert page.js(moving) == 0
    page.media(prefers_reduced_motion="no-preference")
    assert page.js(moving) > 0


def test_paper(opened: Callable[..., Page]) -> None:
    page = opened()
    page.media(prefers_color_scheme="dark")
    page.cdp("Emulation.setEmulatedMedia", media="print")
    assert not page.one("#theme").is_displayed() and not page.one("#text").is_displayed()
    assert luminance(page.js("return getComputedStyle(document.body).color")) < 0.1
    assert page.js(
        "const box = document.querySelector('.scroll'); return box.scrollHeight - box.clientHeight"
    ) in (0, 1)
    page.cdp("Emulation.setEmulatedMedia", media="")


def test_without_scripts_it_is_a_plain_page(opened: Callable[..., Page]) -> None:
    board = sample()
    page = opened()
    page.cdp("Emulation.setScriptExecutionDisabled", value=True)
    try:
        opened(board)
        assert page.names() == [row.name for row in board.rows]
        assert page.all("#table button") == []
        assert [each for each in page.all("button, input, select") if each.is_displayed()] == []
        assert page.js("return document.querySelector('noscript p').checkVisibility()")
        assert page.one(".verdict").is_displayed()
    finally:
        page.cdp("Emulation.setScriptExecutionDisabled", value=False)


def test_everything_that_can_be_operated_has_a_name(opened: Callable[..., Page]) -> None:
    page = opened()

    def named(_: object) -> dict[str, list[str]] | None:
        """Names by role, as soon as the browser has made all of them."""
        roles: dict[str, list[str]] = {}
        for node in page.cdp("Accessibility.getFullAXTree")["nodes"]:
            if not node["ignored"]:
                name = node.get("name", {}).get("value", "")
                roles.setdefault(node["role"]["value"], []).append(name)
        return roles if "button" in roles else None

    roles = WebDriverWait(page.driver, 30).until(named)
    for role in ("button", "combobox", "searchbox", "textbox", "option", "link", "listbox"):
        assert roles[role] and all(roles[role]), role
    assert "Name, family, licence or precision" in roles["searchbox"]
    assert "Models: Alignment with DINOv2-giant and HellaSwag" in roles["listbox"]
    assert {"Models and their scores", "How columns go together"} <= set(roles["table"])
    assert (
        sum(name.startswith("Show ") and name.endswith("in the plot") for name in roles["button"])
        == 21
    )
    headings = [h.tag_name for h in page.all("h1, h2, h3")]
    assert headings[0] == "h1" and headings.count("h1") == 1
