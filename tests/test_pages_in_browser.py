"""The pages in a real browser: drawn, readable at two widths in light and dark, silent, and alone.

Needs the package ``playwright`` and a Chromium: that of the system, or the one that ``playwright install chromium`` brings.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from test_compare_runs import write_run
from test_html_report import complete, evaluated
from test_live_page import live, under_way

from hf_shear.evaluation import compare_runs
from hf_shear.report import live_report, write_comparison_page, write_html_report

pytestmark = pytest.mark.slow
WIDTHS, SCHEMES = (390, 1280), ("light", "dark")
SMALLEST_LETTERS = 11  # CSS pixels
CONTRAST = 4.5  # of letters to what is behind them (WCAG 2, AA); 3 of large ones

# What a reader would stumble over, as texts. Letters over a drawing stand on `--kept`, which no element has as background.
LOOK = """() => {
  const found = [], root = getComputedStyle(document.documentElement)
  const probe = document.createElement('i'); document.body.append(probe)
  const rgb = text => text.match(/[\\d.]+/g).map(Number)
  const asRgb = name => { probe.style.color = `var(${name})`; return rgb(getComputedStyle(probe).color) }
  const light = color => {
    const [r, g, b] = color.slice(0, 3).map(c => (c /= 255) <= .03928 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4)
    return .2126 * r + .7152 * g + .0722 * b }
  const behind = node => { for (; node; node = node.parentElement) {
      if (node.classList.contains('in')) return asRgb('--kept')
      const color = rgb(getComputedStyle(node).backgroundColor)
      if (color.length < 4 || color[3] > .99) return color }
    return [255, 255, 255] }
  const width = document.documentElement.scrollWidth
  if (width > innerWidth) found.push(`the page is ${width} wide`)
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT)
  let letters = 0
  while (walker.nextNode()) {
    const node = walker.currentNode, parent = node.parentElement
    if (!node.textContent.trim() || !parent.checkVisibility()) continue
    letters += node.textContent.trim().length
    const style = getComputedStyle(parent), size = parseFloat(style.fontSize)
    const [a, b] = [light(rgb(style.color)), light(behind(parent))].sort((x, y) => y - x)
    const ratio = (a + .05) / (b + .05), shown = node.textContent.trim().slice(0, 30)
    if (size < SMALLEST) found.push(`${size} px: ${shown}`)
    if (ratio < (size >= 24 ? 3 : CONTRAST)) found.push(`contrast ${ratio.toFixed(2)}: ${shown}`)
    const range = document.createRange(); range.selectNodeContents(node)
    const box = range.getBoundingClientRect(), scrolls = parent.closest('.scroll')
    if (!scrolls && (box.left < 0 || box.right > innerWidth)) found.push(`cut off: ${shown}`)
  }
  let lines = 0
  for (const drawing of document.querySelectorAll('.canvas svg')) {
    const frame = drawing.getBoundingClientRect()
    if (!drawing.checkVisibility()) continue
    if (frame.width < 100 || frame.height < 40) found.push(`a drawing of ${frame.width} x ${frame.height}`)
    for (const path of drawing.querySelectorAll('path')) {
      const box = path.getBBox(), style = getComputedStyle(path)
      lines += box.width + box.height > 0 && (style.stroke != 'none' || style.fill != 'none')
      if (Math.min(box.x, box.y) < -1 || Math.max(box.x + box.width, box.y + box.height) > 1001)
        found.push('a line leaves its drawing')
    }
    const canvas = drawing.parentElement, below = parseFloat(getComputedStyle(canvas).marginBottom)
    for (const label of canvas.querySelectorAll('.xl'))
      if (label.getBoundingClientRect().bottom > canvas.getBoundingClientRect().bottom + below)
        found.push(`too long: ${label.textContent}`)
    for (const kind of ['x', 'y']) {
      const labels = [...canvas.querySelectorAll(`span.${kind}`)]
      const boxes = labels.map(label => label.getBoundingClientRect())
      boxes.forEach((one, i) => boxes.slice(i + 1).forEach(other => {
        if (one.left < other.right && other.left < one.right && one.top < other.bottom && other.top < one.bottom)
          found.push(`labels of ${kind} overlap in ${drawing.getAttribute('aria-label')}`) }))
    }
  }
  probe.remove()
  return {found: [...new Set(found)], letters, lines}
}""".replace("SMALLEST", str(SMALLEST_LETTERS)).replace("CONTRAST", str(CONTRAST))


@pytest.fixture(scope="module")
def browser():
    try:
        from playwright.sync_api import Error, sync_playwright
    except ImportError:
        pytest.skip("pages are looked at with playwright, which is not installed (pip install playwright)")
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    path = next(filter(None, map(shutil.which, names)), None)
    with sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=path)
        except Error as error:
            pytest.skip(f"there is no Chromium that starts (playwright install chromium): {str(error).splitlines()[0]}")
        yield browser
        browser.close()


def many_domains() -> dict:
    """A run with long names and many layers."""
    names = [*(f"domain {index}" for index in range(6)), "a_very_long_name_of_a_domain_without_any_blank_in_it_at_all"]
    return complete(names, layers=32, heads=32, groups=8, hidden=4096, intermediate=11008, rows=40)


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    for name, results, evaluation in (("whole", complete(), evaluated()), ("many", many_domains(), None)):
        (folder / name).mkdir()
        (folder / name / "results.json").write_text(json.dumps(results), encoding="utf-8")
        if evaluation is not None:
            (folder / name / "evaluation.json").write_text(json.dumps(evaluation), encoding="utf-8")
    found = {name: write_html_report(folder / name) for name in ("whole", "many")}
    for name, results in (("live", under_way()), ("live_many", many_domains())):
        found[name] = folder / f"{name}.html"
        found[name].write_text(live_report(results, live(refresh_seconds=600)), encoding="utf-8")
    runs = [folder / f"a run with a name of some length, number {index}" for index in range(4)]
    for index, run in enumerate(runs):
        write_run(run, index, 0.01 * index - 0.01)
    found["compare"] = write_comparison_page(compare_runs(runs), folder / "compare.html")
    return found


@pytest.mark.parametrize("name", ["whole", "many", "live", "live_many", "compare"])
def test_a_page_is_drawn_readable_silent_and_alone(browser, pages, name, tmp_path):
    for width in WIDTHS:
        for scheme in SCHEMES:
            context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
            page, said, asked = context.new_page(), [], []
            page.on("console", lambda message, said=said: said.append(message.text))
            page.on("pageerror", lambda error, said=said: said.append(str(error)))
            page.on("request", lambda request, asked=asked: asked.append(request.url))
            page.goto(pages[name].as_uri())
            seen = page.evaluate(LOOK)
            assert seen["found"] == [], (width, scheme)
            assert seen["letters"] > 400 and (seen["lines"] > 10 or name == "compare")
            assert said == [] and asked == [pages[name].as_uri()]
            dark = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(19, 18, 24)"
            assert dark == (scheme == "dark")
            context.close()


def test_what_readers_stumble_over_is_found(browser, tmp_path):
    """The test of the test: each fault that it looks for."""
    svg = '<svg viewBox="0 0 1000 1000" width="200" height="100">'
    faults = {
        "contrast": '<p style="color:#aaa">pale letters</p>',
        "9 px": '<p style="font-size:9px">small letters</p>',
        "wide": '<p style="width:3000px">wide</p>',
        "cut off": '<p style="margin-left:-50px">cut off letters</p>',
        "leaves its drawing": f'<figure><div class="canvas">{svg}<path d="M0 0L5 2000"/></svg></div></figure>',
    }
    for said, fault in faults.items():
        path = tmp_path / "fault.html"
        path.write_text(f'<meta charset="utf-8"><body>{fault}</body>', encoding="utf-8")
        page = browser.new_page(viewport={"width": 390, "height": 900})
        page.goto(path.as_uri())
        assert any(said in found for found in page.evaluate(LOOK)["found"]), said
        page.close()


def test_a_page_of_a_run_that_goes_loads_itself_again_where_it_is_read(browser, tmp_path):
    path, state = tmp_path / "report.html", live(refresh_seconds=1)
    path.write_text(live_report(under_way(), state), encoding="utf-8")
    page = browser.new_page(viewport={"width": 1280, "height": 800})
    page.goto(path.as_uri())
    page.evaluate("scrollTo(0, 700)")
    path.write_text(live_report(under_way(), state | {"step": 26}), encoding="utf-8")
    page.get_by_role("heading", name="step 26").wait_for(timeout=20_000)
    assert page.evaluate("scrollY") == 700
    path.write_text(live_report(under_way(), state | {"state": "finished", "step": 100}), encoding="utf-8")
    page.get_by_role("heading", name="step 100 of 100").wait_for(timeout=20_000)
    page.evaluate("window.isTheSame = true")
    page.wait_for_timeout(2500)
    assert page.evaluate("window.isTheSame") is True  # it is not loaded any more
    page.close()
