"""The page in a real browser: offline, on a phone, in the dark, and as a screen reader hears it."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

QUIET = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
QUIET += "--disable-component-update --disable-sync"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("there is no chromium on this machine (Debian: apt-get install chromium)")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=QUIET.split())
        yield browser
        browser.close()


def open_page(browser: Browser, path: Path, **context) -> tuple[Page, list[str]]:
    """The page, and every address but its own that it asked for."""
    page = browser.new_context(**context).new_page()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(path.as_uri())
    return page, [address for address in asked if address != path.as_uri()]


def luminance(color: str) -> float:
    """Of `rgb(r, g, b)`, by the web's contrast rule (WCAG 2, relative luminance)."""
    parts = [int(part) / 255 for part in color.removeprefix("rgb(").removesuffix(")").split(", ")]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_it_opens_alone_on_a_phone_light_and_dark(browser, pages, tmp_path):
    for path in pages:
        for scheme in ("light", "dark"):
            page, asked = open_page(
                browser, path, viewport={"width": 390, "height": 844}, color_scheme=scheme, offline=True
            )
            assert asked == []
            assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
            colors = page.evaluate(
                "[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]"
            )
            dim, bright = sorted(map(luminance, colors))
            assert (bright + 0.05) / (dim + 0.05) >= 7  # WCAG's AAA
            assert (luminance(colors[1]) < 0.1) == (scheme == "dark")
            shot = tmp_path / f"{scheme}.png"
            page.screenshot(path=shot, full_page=True)
            assert shot.stat().st_size > 30_000


def test_a_screen_reader_finds_headings_tables_and_described_pictures(browser, pages):
    comparison = pages[0]
    page, _ = open_page(browser, comparison)
    assert page.locator("html").get_attribute("lang") == "en"
    assert page.get_by_role("heading", level=1).count() == 1
    assert page.get_by_role("heading", name="What it cannot show").count() == 1
    assert page.get_by_role("table").count() >= 3
    assert page.get_by_role("rowheader", name="MiLoRA").count() >= 1
    pictures = page.get_by_role("img")
    assert pictures.count() >= 4
    assert all(picture.get_attribute("aria-label") for picture in pictures.all())


def test_it_shows_the_numbers_of_the_table(browser, pages):
    page, _ = open_page(browser, pages[0])
    table = (pages[0].parent / "table.md").read_text().splitlines()
    row = next(line for line in table if line.strip("| ").startswith("MiLoRA"))
    shown = page.get_by_role("table").first.inner_text()
    for cell in row.strip("|").split("|"):
        assert cell.strip() in shown
