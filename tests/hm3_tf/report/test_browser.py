"""The report as a browser shows it. Needs Debian's `chromium`."""

import shutil

import pytest

CHROMIUM = shutil.which("chromium")
if not CHROMIUM:
    pytest.skip("chromium is not installed (apt-get install chromium)", allow_module_level=True)
sync_api = pytest.importorskip("playwright.sync_api")

WIDTHS = (390, 1280)
PLOTS = """elements => elements.map(element => {
  const box = element.getBoundingClientRect();
  return {id: element.parentElement.id, label: element.getAttribute('aria-label'), role: element.getAttribute('role'),
          width: box.width, height: box.height, right: box.right};
})"""


@pytest.fixture(scope="module")
def path(page, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(page)
    return path


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM)
        yield chromium
        chromium.close()


@pytest.fixture(params=WIDTHS)
def opened(request, browser, path):
    """(the opened page, its width, what it said on the console, what it asked for beside itself)."""
    tab = browser.new_page(viewport={"width": request.param, "height": 900})
    said, asked = [], []
    tab.on("console", lambda message: said.append(message.text))
    tab.on("pageerror", lambda error: said.append(str(error)))
    tab.on("request", lambda sent: asked.append(sent.url))
    tab.goto(path.as_uri(), wait_until="networkidle")
    yield tab, request.param, said, [url for url in asked if url != path.as_uri() and not url.startswith("data:")]
    tab.close()


def test_nothing_is_said_on_the_console_and_nothing_asked_of_the_network(opened):
    _, _, said, asked = opened
    assert said == [] and asked == []


def test_every_plot_has_a_size_and_a_text_alternative(opened):
    tab, width, _, _ = opened
    plots = tab.eval_on_selector_all("figure > svg", PLOTS)
    assert len(plots) == 28
    for plot in plots:
        assert plot["role"] == "img" and len(plot["label"]) > 40, plot
        assert plot["width"] > 250 and plot["height"] > 150 and plot["right"] <= width, plot


def test_nothing_is_wider_than_the_screen(opened):
    tab, width, _, _ = opened
    assert tab.evaluate("document.documentElement.scrollWidth") == width
    boxes = tab.eval_on_selector_all(".wide", "all => all.map(e => e.scrollWidth - e.clientWidth)")
    assert boxes and max(boxes) <= 0


def test_no_text_of_a_plot_is_cut_off(opened):
    tab, _, _, _ = opened
    cut = tab.eval_on_selector_all(
        "figure > svg",
        """all => all.flatMap(svg => {
          const outer = svg.getBoundingClientRect();
          return [...svg.querySelectorAll('text')].filter(text => {
            const box = text.getBoundingClientRect();
            return box.left < outer.left - 1 || box.right > outer.right + 1 || box.bottom > outer.bottom + 1;
          }).map(text => svg.parentElement.id + ': ' + text.textContent);
        })""",
    )
    assert cut == []


def test_no_texts_of_a_plot_overlap(opened):
    tab, _, _, _ = opened
    overlaps = tab.eval_on_selector_all(
        "figure > svg",
        """all => all.flatMap(svg => {
          const texts = [...svg.querySelectorAll('text')].map(text => [text.textContent, text.getBoundingClientRect()]);
          return texts.flatMap(([name, a], i) => texts.slice(i + 1).filter(([_, b]) =>
            a.left < b.right - 1 && b.left < a.right - 1 && a.top < b.bottom - 2 && b.top < a.bottom - 2
          ).map(([other, _]) => `${svg.parentElement.id}: ${name} and ${other}`));
        })""",
    )
    assert overlaps == []


def test_it_can_be_printed(browser, path):
    tab = browser.new_page(viewport={"width": 703, "height": 1000})  # A4 less its margins
    tab.goto(path.as_uri())
    tab.emulate_media(media="print")
    assert tab.evaluate("document.documentElement.scrollWidth") == 703
    assert tab.eval_on_selector("nav", "nav => getComputedStyle(nav).display") == "none"
    assert tab.pdf(format="A4")[:4] == b"%PDF"
    tab.close()


def test_a_request_would_be_seen(browser, tmp_path):
    path = tmp_path / "page.html"
    path.write_text("<img src='http://127.0.0.1:9/x.png'><script>console.error('heard')</script>")
    tab = browser.new_page()
    asked, said = [], []
    tab.on("request", lambda sent: asked.append(sent.url))
    tab.on("console", lambda message: said.append(message.text))
    tab.goto(path.as_uri())
    tab.close()
    assert "http://127.0.0.1:9/x.png" in asked and "heard" in said
