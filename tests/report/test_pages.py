"""The pages in a real browser: offline, on a phone, in the dark, by keyboard, and as a screen reader hears them."""

import re
from importlib.resources import files
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Browser, Page

from milora.report.run_page import write_report
from milora.run.recipe import load_recipe
from milora.training.prepare import locate
from tests.made_runs import make_run, make_scores

PHONE = {"width": 390, "height": 844}


def open_page(browser: Browser, path: Path, **context) -> tuple[Page, list[str]]:
    """The page, and every address but its own that it asked for."""
    page = browser.new_context(**context).new_page()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: asked.append(str(error)))
    page.goto(path.as_uri())
    return page, [address for address in asked if address != path.as_uri()]


def luminance(color: str) -> float:
    """Of `rgb(r, g, b)`, by the web's contrast rule (WCAG 2, relative luminance)."""
    parts = [int(part) / 255 for part in color.removeprefix("rgb(").removesuffix(")").split(", ")]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    dim, bright = sorted(map(luminance, (one, other)))
    return (bright + 0.05) / (dim + 0.05)


def style(page: Page, part: str, name: str) -> str:
    return page.evaluate(f"getComputedStyle(document.querySelector('{part}')).{name}")


def test_it_opens_alone_at_every_width_light_and_dark(browser, pages):
    for path in pages.all:
        for scheme in ("light", "dark"):
            page, asked = open_page(browser, path, viewport=PHONE, color_scheme=scheme, offline=True)
            assert asked == []
            for width in (390, 768, 1280):
                page.set_viewport_size({"width": width, "height": 900})
                assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
            paper = style(page, "body", "backgroundColor")
            assert (luminance(paper) < 0.1) == (scheme == "dark")
            assert contrast(style(page, "body", "color"), paper) >= 7  # WCAG's AAA
            assert contrast(style(page, ".plot .tick", "fill"), paper) >= 4.5  # AA
            assert contrast(style(page, ".plot .line", "stroke"), paper) >= 3


@pytest.mark.parametrize(("scheme", "options"), [("light", "{}"), ("dark", "{runOnly: ['color-contrast']}")])
def test_axe_finds_nothing(browser, pages, scheme, options):
    pytest.importorskip("axe_playwright_python")
    axe = files("axe_playwright_python").joinpath("axe.min.js").read_text(encoding="utf-8")
    for path in (pages.comparison, pages.run)[scheme == "dark" :]:
        page, _ = open_page(browser, path, viewport=PHONE, color_scheme=scheme)
        page.evaluate("for (const part of document.querySelectorAll('details')) part.open = true")
        page.evaluate(axe)
        found = page.evaluate(f"axe.run(document, {options})")
        assert [(one["id"], one["nodes"][0]["html"]) for one in found["violations"]] == []


def test_a_screen_reader_finds_headings_tables_and_described_charts(browser, pages):
    page, _ = open_page(browser, pages.comparison)
    assert page.locator("html").get_attribute("lang") == "en"
    assert page.get_by_role("heading", level=1).count() == 1
    assert page.get_by_role("heading", name="What it cannot show").count() == 1
    assert page.get_by_role("table").count() >= 3
    assert page.get_by_role("rowheader", name="MiLoRA").count() >= 1
    charts = page.locator(".plot > svg")
    assert charts.count() >= 4
    assert all(len(chart.get_attribute("aria-label")) > 40 for chart in charts.all())
    (loss,) = [
        chart for chart in charts.all() if chart.get_attribute("aria-label").startswith("arithmetic by learning")
    ]
    assert "LoRA, learning rate 0.001: 50.0 %" in loss.get_attribute("aria-label")


def test_it_shows_the_numbers_of_the_table(browser, pages):
    page, _ = open_page(browser, pages.comparison)
    table = (pages.comparison.parent / "table.md").read_text().splitlines()
    row = next(line for line in table if line.strip("| ").startswith("MiLoRA"))
    shown = page.get_by_role("table").first.inner_text()
    for cell in row.strip("|").split("|"):
        assert cell.strip() in shown


def test_each_point_and_each_finished_run_leads_to_its_page(browser, pages):
    page, _ = open_page(browser, pages.comparison)
    addresses = page.evaluate("[...document.querySelectorAll('main a:not(nav a)')].map(a => a.href ?? a.href.baseVal)")
    links = page.evaluate(
        "[...document.querySelectorAll('.plot a')].map(a => [a.getAttribute('aria-label'), a.href.baseVal])"
    )
    assert len(addresses) > 12 and len({href for _, href in links}) == 4  # two methods, two rates with finished runs
    for label, href in links:
        target = (pages.comparison.parent / href).resolve()
        assert target.is_file(), href
        rate = re.search(r"learning rate ([\d.e-]+\d)", label)[1]
        recipe = load_recipe(str(target.parent / "recipe.yaml"))
        assert float(rate) == recipe.training.learning_rate
        assert label.startswith("LoRA") == (recipe.adapter.method == "lora")
    page.locator(".plot a").first.focus()
    page.keyboard.press("Enter")
    page.wait_for_url("**/report.html")
    assert page.get_by_role("heading", level=1).inner_text() == "quickstart"


def test_samples_are_filtered_by_keyboard(browser, pages):
    page, _ = open_page(browser, pages.run)
    assert page.locator(".sample").count() == 10  # of 40
    page.get_by_role("button", name="Right only after").focus()
    page.keyboard.press("Enter")
    status = page.locator("#samples [role=status]")
    assert status.inner_text() == "10 of 26 samples shown"
    assert page.locator(".sample .verdict").all_inner_texts() == ["✗ wrong", "✓ right"] * 10
    page.get_by_role("button", name="Show 10 more").focus()
    page.keyboard.press("Enter")
    assert page.locator(".sample").count() == 20
    assert (
        page.evaluate("document.activeElement.querySelector('h3').textContent") == "arithmetic, 15"
    )  # the 11th of them
    page.get_by_role("searchbox").fill("item 29")
    assert status.inner_text() == "1 of 1 samples shown"


def test_two_arms_are_compared_item_by_item(browser, pages):
    page, _ = open_page(browser, pages.comparison)
    page.get_by_label("First").select_option("LoRA")
    page.get_by_label("Second").select_option("MiLoRA")
    page.get_by_role("button", name="Only the second right").click()
    assert page.locator(".answer:visible h4 > span:first-child").all_inner_texts() == ["LoRA", "MiLoRA"] * 7
    row = page.get_by_role("row", name="LoRA, MiLoRA")
    assert row.inner_text().split("\t")[1:] == ["8", "2", "7", "3"]


def test_words_that_only_one_answer_has_are_marked(browser, tmp_path):
    run = make_run(locate(load_recipe("quickstart", ["evaluation.limit=2"]), tmp_path))
    make_scores(run, [0, 0], base=True, answer="He has 3 + 4 = 8 apples.")
    make_scores(run, [1, 0], answer="He has 3 + 4 = 7 apples <b>.")
    page, errors = open_page(browser, write_report(run))
    assert errors == []
    assert page.locator(".sample").first.locator("mark").all_inner_texts() == ["8 apples.", "7 apples <b>."]


def test_without_scripts_the_first_samples_are_there(browser, pages):
    page, _ = open_page(browser, pages.run, java_script_enabled=False)
    assert page.locator(".sample").count() == 10
    assert not page.locator(".controls").is_visible()


def test_on_paper_nothing_is_dark_and_nothing_scrolls(browser, pages):
    for path in pages.all:
        page, _ = open_page(browser, path, color_scheme="dark", viewport={"width": 718, "height": 1000})  # A4
        page.emulate_media(media="print")
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert not page.locator("nav").is_visible() and not page.locator("button:visible").count()
        assert page.evaluate("[...document.querySelectorAll('.scroll')].every(part => part.scrollWidth <= 730)")


def test_a_page_of_5000_samples_opens_in_two_seconds(browser, tmp_path):
    run = make_run(locate(load_recipe("quickstart", ["evaluation.limit=5000"]), tmp_path))
    text = "First there are three apples and then there are four more of them, which makes seven in all. " * 4
    for base in (True, False):
        make_scores(run, [1, 0] * 2500, base=base, answer=f"<&> {text}", asked="item")
    page, errors = open_page(browser, write_report(run))
    assert errors == []
    timing = "performance.getEntriesByType('navigation')[0]"
    page.wait_for_function(f"{timing}.loadEventEnd > 0")
    assert page.evaluate(f"{timing}.loadEventEnd") < 2000
    assert page.locator(".sample").count() == 10
    page.get_by_role("searchbox").fill("item 4999")
    assert page.locator("#samples [role=status]").inner_text() == "1 of 1 samples shown"
    page.get_by_role("searchbox").fill("<&> first")
    assert page.locator("#samples [role=status]").inner_text() == "10 of 5,000 samples shown"
    page.get_by_role("searchbox").fill("article")  # which is in no text
    assert page.locator("#samples [role=status]").inner_text() == "0 of 0 samples shown"


def test_pictures_of_the_questions_are_in_the_page(browser, tmp_path):
    paths = [str(tmp_path / f"{color}.png") for color in ("red", "blue")]
    for path in paths:
        Image.new("RGB", (640, 480), Path(path).stem).save(path)
    run = make_run(locate(load_recipe("quickstart", ["evaluation.limit=24"]), tmp_path))
    for base in (True, False):
        images = [(paths[0],)] * 11 + [(paths[1],)] * 12 + [(str(tmp_path / "gone.png"),)]
        make_scores(run, [1] * 24, base=base, images=images)
    report = write_report(run)
    for path in paths:
        Path(path).unlink()  # the page is self-contained
    page, errors = open_page(browser, report, offline=True)
    assert errors == [] and report.read_text().count("data:image/webp") == 10 + 2  # each once but for the first samples
    page.get_by_role("button", name="Show 10 more").click()
    page.get_by_role("button", name="Show 4 more").click()
    sizes = page.evaluate("[...document.querySelectorAll('.sample img')].map(image => image.naturalWidth)")
    assert sizes == [192] * 23
    assert page.locator(".sample").last.inner_text().count("gone.png is not in this page") == 1
