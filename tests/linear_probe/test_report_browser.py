"""The page in a browser, headless: skipped where chromium, its driver or selenium is absent."""

from __future__ import annotations

import re
import shutil

import pytest
from report_rows import LEVELS, baselines, tokenizer_rows, with_pictures

from linear_probe.report.write import write_report

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is absent: pip install -e '.[dev]'")
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
PROTOCOL = "th.ours"
pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="chromium or chromedriver is absent: apt-get install chromium chromium-driver"
)


@pytest.fixture(scope="module")
def driver():
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for word in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--window-size=1200,900",
    ):
        options.add_argument(word)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    yield browser
    browser.quit()


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    rows = with_pictures(tokenizer_rows(), folder)
    write_report(rows, baselines(), folder, folder / "out", "A made-up report", {"linear": [1, 0.5, 0]})
    return folder / "out" / "index.html"


@pytest.fixture
def page(driver, file):
    screen(driver, 1200)
    driver.get(file.as_uri())
    return driver


def screen(driver, width, scheme="light"):
    """A screen of that width, in light or dark mode."""
    size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 600}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


def names(page):
    """Return the names of the lines that are shown, from the top."""
    return [e.text for e in page.find_elements(By.CSS_SELECTOR, "#results tbody tr summary") if e.is_displayed()]


def values(page, column):
    trials = page.find_elements(By.CSS_SELECTOR, f"#results tbody td:nth-child({column + 1})")
    return [float(v) for c in trials if (v := c.get_attribute("data-v"))]


def index_of(page, head):
    return page.execute_script("return arguments[0].cellIndex", head)


def test_it_loads_without_an_error(page):
    assert "A made-up report" in page.title
    assert page.get_log("browser") == []
    broken = "return [...document.images].filter(i => !(i.complete && i.naturalWidth)).length"
    assert page.execute_script(broken) == 0
    loaded = page.execute_script("return performance.getEntriesByType('resource').map(e => e.name)")
    assert [name for name in loaded if not name.startswith("data:")] == []


def test_the_slider_changes_the_picture(page):
    figure, other = page.find_elements(By.CSS_SELECTOR, ".denoised")[:2]

    def shown(figure):
        return [i.get_attribute("data-t") for i in figure.find_elements(By.TAG_NAME, "img") if i.is_displayed()]

    slider, output = figure.find_element(By.TAG_NAME, "input"), figure.find_element(By.TAG_NAME, "output")
    low, middle, high = LEVELS
    assert (shown(figure), output.text) == ([str(middle)], f"t = {middle}, σ = {middle / 1000:g}")
    for t, key in ((high, Keys.ARROW_RIGHT), (middle, Keys.ARROW_LEFT), (low, Keys.ARROW_LEFT)):
        slider.send_keys(key)
        assert (shown(figure), output.text) == ([str(t)], f"t = {t}, σ = {t / 1000:g}")
        assert slider.get_attribute("aria-valuetext") == f"t = {t}, σ = {t / 1000:g}"
    assert shown(other) == [str(middle)]
    page.find_element(By.ID, "together").click()
    slider.send_keys(Keys.ARROW_RIGHT)
    slider.send_keys(Keys.ARROW_RIGHT)
    assert shown(figure) == shown(other) == [str(high)]


def test_the_rows_of_denoised_images_have_labels_beside_them(page):
    figure = page.find_element(By.CSS_SELECTOR, ".denoised")
    labels = figure.find_elements(By.TAG_NAME, "li")
    assert [label.text for label in labels] == ["clean", "noised", "denoised"]
    (image,) = [i.rect for i in figure.find_elements(By.TAG_NAME, "img") if i.is_displayed()]
    for row, label in enumerate(labels):
        middle = label.rect["y"] + label.rect["height"] / 2
        assert abs(middle - image["y"] - image["height"] * (row + 0.5) / 3) < 8


@pytest.mark.parametrize("way", ["click", "keyboard"])
def test_sorting_works_both_ways_and_back(page, way):
    head = page.find_element(By.CSS_SELECTOR, PROTOCOL)
    column, given = index_of(page, head), names(page)
    plain = values(page, column)
    button = head.find_element(By.TAG_NAME, "button")
    for order, expected in (("descending", sorted(plain, reverse=True)), ("ascending", sorted(plain)), ("none", plain)):
        button.click() if way == "click" else button.send_keys(Keys.ENTER)
        assert head.get_attribute("aria-sort") == order
        assert values(page, column) == expected
    assert names(page) == given
    assert plain not in (sorted(plain), sorted(plain, reverse=True))


def test_words_sort_and_lines_without_a_value_stay_last(page):
    heads = page.find_elements(By.CSS_SELECTOR, "#results thead th")
    heads[0].find_element(By.TAG_NAME, "button").click()
    assert names(page) == sorted(
        names(page), key=lambda n: [int(x) if x.isdigit() else x.lower() for x in re.split(r"(\d+)", n)]
    )
    paper = page.find_element(By.CSS_SELECTOR, "th.paper button")
    for _ in range(2):
        paper.click()
        assert names(page)[-3:] == [
            "MAE, made up trained baseline",
            "raw pixels training-free baseline",
            "PCA training-free baseline",
        ]


def test_search_leaves_the_lines_that_hold_all_words(page):
    box, everything = page.find_element(By.ID, "search"), names(page)
    box.send_keys("VAE 32")
    assert names(page) == [n for n in everything if n == "made_up_vae-32"]
    assert page.find_element(By.ID, "count").text == f"1 of {len(everything)}"
    box.clear()
    box.send_keys("nothing is called so")
    assert names(page) == []
    box.clear()
    box.send_keys(" ")
    assert names(page) == everything


def test_a_name_opens_commands_and_settings(page):
    summary = page.find_element(By.CSS_SELECTOR, "#results tbody summary")
    summary.click()
    opened = summary.find_element(By.XPATH, "..").text
    assert "ldae pretrain out=RUN" in opened
    assert "ldae probe run=RUN" in opened


@pytest.mark.parametrize("width", [360, 768, 1200])
def test_the_page_never_scrolls_sideways(page, width):
    screen(page, width)
    for opened in (False, True):
        page.execute_script("document.querySelectorAll('details').forEach(d => d.open = arguments[0])", opened)
        assert page.execute_script("return document.documentElement.scrollWidth") <= width
    if width == 360:  # every number is on the screen
        ends = "return [...document.querySelectorAll('#results td')].map(e => e.getBoundingClientRect().right)"
        assert 0 < max(page.execute_script(ends)) <= width


CONTRASTS = """
const level = ([r, g, b]) => [r, g, b].map(v => v / 255)
  .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
  .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
const parsed = text => text.match(/[\\d.]+/g).map(Number);
const behind = element => {
  for (let e = element; e; e = e.parentElement) {
    const c = parsed(getComputedStyle(e).backgroundColor);
    if (c.length === 3 || c[3] === 1) return c;
  }
  return [255, 255, 255];
};
const under = e => {  // the fill of what is drawn behind the middle of a text
  const back = behind(e.closest('svg') || e);
  if (!e.closest('svg')) return back;
  e.scrollIntoView({block: 'center'});
  const box = e.getBoundingClientRect();
  const at = document.elementsFromPoint(box.x + box.width / 2, box.y + box.height / 2);
  const fills = at.filter(o => o.tagName === 'path').map(o => getComputedStyle(o).fill).filter(f => f !== 'none');
  return fills.length ? parsed(fills[0]).slice(0, 3) : back;
};
document.querySelectorAll('details').forEach(d => d.open = true);
const contrasts = [];
for (const e of document.querySelectorAll('body *:not(script):not(desc):not(title)')) {
  if (![...e.childNodes].some(n => n.nodeType === 3 && n.data.trim())) continue;
  const style = getComputedStyle(e);
  const [a, b] = [parsed(e.closest('svg') ? style.fill : style.color), under(e)].map(level).sort((x, y) => y - x);
  contrasts.push([(a + 0.05) / (b + 0.05), `${e.tagName}.${e.getAttribute('class')}: ${e.textContent.slice(0, 30)}`]);
}
return [getComputedStyle(document.body).backgroundColor, contrasts];
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_stands_out(page, scheme):
    screen(page, 1200, scheme)
    back, contrasts = page.execute_script(CONTRASTS)
    assert (sum(map(int, re.findall(r"\d+", back)[:3])) < 150) is (scheme == "dark")
    assert len(contrasts) > 100
    assert [text for contrast, text in contrasts if contrast < 4.5] == []


CUT = """
document.querySelectorAll('details').forEach(d => d.open = true);
const cut = [];
for (const svg of document.querySelectorAll('.plot svg')) {
  const frame = svg.getBoundingClientRect();
  for (const e of svg.querySelectorAll('text')) {
    const box = e.getBoundingClientRect();
    if (box.left < frame.left - 1 || box.right > frame.right + 1 || box.top < frame.top - 1
        || box.bottom > frame.bottom + 1) cut.push(e.textContent);
  }
}
const sizes = [...document.querySelectorAll('.plot text')].map(e => parseFloat(getComputedStyle(e).fontSize)
  * e.getScreenCTM().d).filter(v => v > 0);
return [cut, Math.min(...sizes)];
"""


@pytest.mark.parametrize("width", [390, 1280])
def test_text_of_figures_is_whole_and_large_enough_to_read(page, width):
    screen(page, width)
    cut, smallest = page.execute_script(CUT)
    assert cut == []
    assert smallest > 9  # CSS pixels


def test_figures_have_the_colours_of_the_mode(page):
    fill = "return getComputedStyle(document.querySelector('.plot svg path')).fill"  # the background of a figure
    for scheme in ("light", "dark"):
        screen(page, 1200, scheme)
        assert page.execute_script(fill) == page.execute_script(
            "return getComputedStyle(document.body).backgroundColor"
        )


def test_a_point_has_its_value_as_a_tooltip(page):
    titles = "return [...document.querySelectorAll('.plot svg use > title')].map(e => e.textContent)"
    assert "made_up_pca, d = 4: 50.00 ± 0.25" in page.execute_script(titles)
