"""`ldae fool`: pairs, the page as a participant uses it in a browser, and the rate that its answers give."""

from __future__ import annotations

import base64
import io
import itertools
import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image
from scipy.stats import beta

from ldae.app.sampling.fool import main, read_all, table
from ldae.app.sampling.forced_choice import Answers, Pairs, build_page, read_answers
from ldae.core.errors import ConfigError, DataError, Fault

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
COUNT = 10
PAGES = itertools.count()  # of this process


def pictures(seed, count=COUNT, size=8):
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), np.uint8)


def content(page):
    return json.loads(re.search(r'<script id="content" type="application/json">(.*?)</script>', page, re.S)[1])


def answered(tmp_path, page, choices, name="a", participant="p"):
    """A file as the page saves it."""
    embedded = content(page)
    known = {key: embedded[key] for key in ("format", "page", "key", "seconds")}
    answers = [{"pair": pair, "choice": choice} for pair, choice in choices.items()]
    path = tmp_path / f"{name}.json"
    path.write_text(json.dumps({**known, "participant": participant, "answers": answers}))
    return path


@pytest.fixture
def drawn():
    return Pairs(pictures(0, 30), pictures(1, 30)).drawn(20, seed=3)


def test_pairs_are_drawn_once_each_by_the_seed(drawn):
    again, other = (Pairs(pictures(0, 30), pictures(1, 30)).drawn(20, seed) for seed in (3, 4))
    assert np.array_equal(drawn.real, again.real)
    assert drawn.real_side == again.real_side
    assert not np.array_equal(drawn.real, other.real)
    position = {image.tobytes(): i for i, image in enumerate(pictures(0, 30))}
    chosen = [position[image.tobytes()] for image in drawn.real]
    assert len(set(chosen)) == 20
    assert np.array_equal(drawn.fake, pictures(1, 30)[chosen])
    sides = Pairs(pictures(0, 400, 2), pictures(1, 400, 2)).drawn(400, 0).real_side
    assert 160 < sum(sides) < 240  # a fair coin: 200, deviation 10


def test_the_same_pairs_give_the_same_page(drawn):
    assert build_page(drawn, 3.0) == build_page(drawn, 3.0)
    assert content(build_page(drawn, 3.0))["page"] != content(build_page(drawn, 2.0))["page"]


def test_the_page_does_not_say_which_picture_is_real(drawn):
    page = build_page(drawn, 3.0)
    embedded = content(page)
    assert set(embedded) == {"format", "page", "key", "seconds", "pairs"}
    assert {frozenset(pair) for pair in embedded["pairs"]} == {frozenset(("left", "right", "reference"))}
    sides = "".join(map(str, drawn.real_side))
    assert sides not in page
    assert b"sides" not in base64.b64decode(embedded["key"])
    assert not re.search(r"fake|original|restored|samples", page, re.I)
    assert "http" not in re.sub(r'"data:image[^"]*"', "", page)


def test_the_rate_counts_the_answers_that_name_the_generated_picture(drawn, tmp_path):
    page, sides = build_page(drawn, 3.0), ("left", "right")
    right = {i: sides[side] for i, side in enumerate(drawn.real_side)}
    wrong = {i: sides[1 - side] for i, side in enumerate(drawn.real_side)}
    assert sum(read_answers(answered(tmp_path, page, right)).fooled) == 0
    assert sum(read_answers(answered(tmp_path, page, wrong)).fooled) == 20
    mixed = {i: (wrong if i < 7 else right)[i] for i in range(16)}
    assert list(read_answers(answered(tmp_path, page, mixed)).fooled) == [True] * 7 + [False] * 9


@pytest.mark.parametrize(("k", "n"), [(0, 10), (4, 10), (25, 50), (10, 10)])
def test_the_interval_is_wilson_s(k, n):
    low, high = Answers("", "", [True] * k + [False] * (n - k)).interval()
    z, p = 1.959963984540054, k / n
    centre, half = p + z**2 / (2 * n), z * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    assert low == pytest.approx(max(0, (centre - half) / (1 + z**2 / n)), abs=1e-9)
    assert high == pytest.approx(min(1, (centre + half) / (1 + z**2 / n)), abs=1e-9)
    exact = beta.ppf([0.025, 0.975], [k, k + 1], [n - k + 1, n - k])  # Clopper and Pearson's, which is never narrower
    assert high - low <= np.nan_to_num(exact[1], nan=1) - np.nan_to_num(exact[0], nan=0) + 1e-3


def test_participants_are_pooled_and_counted_once(drawn, tmp_path):
    page = build_page(drawn, 3.0)
    answered(tmp_path, page, dict.fromkeys(range(10), "left"), "a", "one")
    answered(tmp_path, page, dict.fromkeys(range(20), "right"), "b", "two")
    rows = table(read_all(str(tmp_path))).splitlines()
    assert len(rows) == 5
    assert rows[-1].split("|")[1:3] == [" all         ", "      30 "]
    answered(tmp_path, page, {0: "left"}, "c", "two")
    with pytest.raises(DataError, match=r"c.json is of the same participant as .*b.json"):
        read_all(str(tmp_path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answers": []}, "has no answer yet"),
        ({"format": "ldae fool 9"}, "this version reads 'ldae fool 1'"),
        ({"page": "0" * 16}, "or is damaged"),
        ({"key": "###"}, "or is damaged"),
        ({"answers": [{"pair": 99, "choice": "left"}]}, "or is damaged"),
        ({"answers": [{"pair": -1, "choice": "left"}]}, "or is damaged"),
        ({"answers": [{"pair": 0, "choice": "up"}]}, "or is damaged"),
        ({"answers": [{"pair": 0, "choice": "left"}] * 2}, "or is damaged"),
    ],
)
def test_damaged_answers_are_refused(drawn, tmp_path, change, message):
    path = answered(tmp_path, build_page(drawn, 3.0), {0: "left"})
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(DataError, match=message):
        read_answers(path)


def folder_of(path, images, names):
    path.mkdir(parents=True)
    for image, name in zip(images, names, strict=True):
        Image.fromarray(image).save(path / f"{name}.png")
    return path


def decoded(uri):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))))


def test_pictures_of_the_same_names_are_pairs_and_real_ones_are_resized(tmp_path):
    real, fake = pictures(0), pictures(1)
    large = real.repeat(2, 1).repeat(2, 2)
    folder_of(tmp_path / "real" / "deeper", large, range(COUNT))
    folder_of(tmp_path / "fake", fake[:6], range(6))
    main([f"real={tmp_path / 'real'}", f"fake={tmp_path / 'fake'}", f"out={tmp_path / 'p.html'}"])
    pairs = content((tmp_path / "p.html").read_text())["pairs"]
    assert len(pairs) == 6
    generated = {image.tobytes(): i for i, image in enumerate(fake)}
    for pair in pairs:
        left, right = decoded(pair["left"]), decoded(pair["right"])
        (i,) = {generated.get(left.tobytes()), generated.get(right.tobytes())} - {None}
        other = right if left.tobytes() in generated else left
        assert np.array_equal(other, np.asarray(Image.fromarray(large[i]).resize((8, 8), Image.Resampling.BICUBIC)))


def test_two_sets_are_paired_at_random_by_the_seed(tmp_path):
    np.savez(tmp_path / "fake.npz", arr_0=pictures(1, 5))
    folder_of(tmp_path / "real", pictures(0), [f"r{i}" for i in range(COUNT)])
    argv = [f"real={tmp_path / 'real'}", f"fake={tmp_path / 'fake.npz'}"]
    pages = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        main([*argv, f"out={tmp_path / name}.html", f"seed={seed}"])
        pages.append((tmp_path / f"{name}.html").read_text())
    assert pages[0] == pages[1] != pages[2]
    assert len(content(pages[0])["pairs"]) == 5


def test_a_result_of_restore_gives_pairs_with_their_reference(tmp_path):
    folder = tmp_path / "restored"
    folder.mkdir()
    low, original, bicubic, sampled = pictures(0), pictures(1), pictures(2), pictures(3)
    np.savez(folder / "restored.npz", low=low, bicubic=bicubic, sampled=sampled, original=original)
    (folder / "restored.json").write_text(json.dumps({"measured": ["bicubic", "sampled"]}))
    argv = [f"restored={folder}", f"out={tmp_path / 'p.html'}", "reference=low"]
    for column, expected in (("sampled", sampled), ("bicubic", bicubic)):
        main([*argv, *([] if column == "sampled" else [f"column={column}"])])
        for pair in content((tmp_path / "p.html").read_text())["pairs"]:
            shown = {decoded(pair[side]).tobytes() for side in ("left", "right")}
            (i,) = [i for i in range(COUNT) if low[i].tobytes() == decoded(pair["reference"]).tobytes()]
            assert shown == {original[i].tobytes(), expected[i].tobytes()}
    with pytest.raises(ConfigError, match="column='high' is no column to compare; there are: low, bicubic, sampled"):
        main([*argv, "column=high"])


@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        ([], 2, "give one of them, out=PAGE.html or answers=FILE"),
        (["out=page"], 2, "must end in .html"),
        (["out=p.html"], 2, "give two folders of pictures, or restored=FOLDER"),
        (["out=p.html", "restored=a", "real=b"], 2, "replaces real= and fake="),
        (["out=p.html", "restored=nowhere"], 65, "holds no restored.npz"),
        (["out=p.html", "real=nowhere", "fake=nowhere"], 65, "fake=nowhere is no folder"),
        (["out=p.html", "real=R", "fake=F", "pairs=99"], 2, "pairs=99 exceeds the 10 pairs"),
        (["out=p.html", "real=R", "fake=R"], 65, "of 10 pairs are the same"),
        (["out=p.html", "real=R", "fake=E"], 65, "holds no images"),
        (["out=nowhere/p.html", "real=R", "fake=F"], 73, "does not exist"),
        (["out=p.html", "real=R", "fake=F", "seconds=0"], 2, "seconds=0"),
        (["answers=nowhere.json"], 65, "is no file and no folder"),
        (["answers=E"], 65, "is no file and no folder"),
    ],
)
def test_a_mistake_is_one_sentence_and_writes_nothing(tmp_path, monkeypatch, argv, code, message):
    folder_of(tmp_path / "R", pictures(0), range(COUNT))
    folder_of(tmp_path / "F", pictures(1), range(COUNT))
    (tmp_path / "E").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Fault, match=re.escape(message)) as caught:
        main(argv)
    assert caught.value.code == code
    assert sorted(p.name for p in tmp_path.iterdir()) == ["E", "F", "R"]


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is absent: pip install -e '.[dev]'")
    if not (CHROMIUM and DRIVER):
        pytest.skip("chromium or chromedriver is absent: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for word in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(word)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    browser.downloads = tmp_path_factory.mktemp("downloads")
    known = {"behavior": "allow", "downloadPath": str(browser.downloads)}
    browser.execute_cdp_cmd("Browser.setDownloadBehavior", known)
    yield browser
    browser.quit()


@pytest.fixture
def page(driver, tmp_path):
    """A page that no test has opened: the time is part of the name of its answers in the browser's storage.

    Clearing the storage instead would be a race: the browser can execute it after answers of the next page.
    """
    drawn = Pairs(pictures(0), pictures(1)).drawn(COUNT, 0)
    (tmp_path / "page.html").write_text(build_page(drawn, 0.5 + next(PAGES) / 1000))
    driver.get((tmp_path / "page.html").as_uri())
    return driver


def wait(driver, script):
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(driver, 30).until(lambda d: d.execute_script(f"return {script}"))


def reload_until(driver, script):
    """Reload the page; again where Chromium had not yet handed its storage to the new page's process."""
    from selenium.webdriver.support.ui import WebDriverWait

    def reloaded(driver):
        driver.refresh()
        return driver.execute_script(f"return {script}")

    WebDriverWait(driver, 30).until(reloaded)


READY = "!document.querySelector('[data-choice]').disabled"
POSITION = "document.getElementById('position').textContent"


def test_ten_answers_are_kept_over_a_reload_and_saved(page, tmp_path):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    page.find_element(By.ID, "begin").click()
    for k in range(COUNT):
        wait(page, f"{POSITION} === 'Pair {k + 1} of {COUNT}' && {READY}")
        if k == 4:  # the browser is closed and opened again
            reload_until(page, "!document.getElementById('resumed').hidden")
            assert page.find_element(By.ID, "resumed").text.startswith("4 of 10 pairs are answered")
            page.find_element(By.ID, "begin").click()
            wait(page, f"{POSITION} === 'Pair {k + 1} of {COUNT}' && {READY}")
        if k % 2:
            page.find_element(By.CSS_SELECTOR, "[data-choice=right]").click()
        else:
            page.find_element(By.TAG_NAME, "body").send_keys(Keys.ARROW_LEFT)
    wait(page, "!document.getElementById('end').hidden")
    page.find_element(By.ID, "save").click()
    wait(page, "!document.getElementById('saved').hidden")
    for _ in range(100):
        if files := list(page.downloads.glob("answers-*.json")):
            break
        page.execute_async_script("setTimeout(arguments[0], 50)")
    assert files[0].name in page.find_element(By.ID, "saved").text
    values = json.loads(files[0].read_text())
    assert sorted(a["pair"] for a in values["answers"]) == list(range(COUNT))
    assert [a["choice"] for a in values["answers"]] == ["left", "right"] * 5
    assert [a["showings"] for a in values["answers"]] == [1, 1, 1, 1, 2, 1, 1, 1, 1, 1]
    sides = Pairs(pictures(0), pictures(1)).drawn(COUNT, 0).real_side
    fooled = sum(("left", "right").index(a["choice"]) != sides[a["pair"]] for a in values["answers"])
    assert f"| {fooled} |" in re.sub(" +", " ", table([read_answers(files[0])]))
    assert [entry for entry in page.get_log("browser") if "favicon" not in entry["message"]] == []
    loaded = page.execute_script("return performance.getEntriesByType('resource').map(e => e.name)")
    assert [name for name in loaded if not name.startswith(("data:", "blob:"))] == []


def test_a_pair_disappears_after_its_time(page):
    from selenium.webdriver.common.by import By

    others = page.execute_script("return localStorage.length")
    page.find_element(By.ID, "begin").click()
    wait(page, READY)
    hidden = "[...document.querySelectorAll('.frame img')].every(i => getComputedStyle(i).visibility === 'hidden')"
    assert wait(page, hidden)
    assert page.find_element(By.ID, "hint").text == "Which one was real?"
    stored = page.execute_script("return localStorage.length")
    page.find_element(By.CSS_SELECTOR, "[data-choice=left]").click()  # an answer after that counts
    wait(page, f"{POSITION} === 'Pair 2 of {COUNT}'")
    assert stored == others + 1


def test_small_pictures_are_enlarged_eightfold_at_most(driver, tmp_path):
    from selenium.webdriver.common.by import By

    drawn = Pairs(pictures(0, size=32), pictures(1, size=32)).drawn(COUNT, 0)
    (tmp_path / "page.html").write_text(build_page(drawn, 9.0))
    driver.get((tmp_path / "page.html").as_uri())
    driver.find_element(By.ID, "begin").click()
    wait(driver, READY)
    width = driver.execute_script("return document.getElementById('left').getBoundingClientRect().width")
    assert 6 * 32 < width <= 8 * 32


@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_the_screen(page, width, scheme):
    from selenium.webdriver.common.by import By

    size = {"width": width, "height": 700, "deviceScaleFactor": 1, "mobile": width < 600}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    page.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    )
    page.find_element(By.ID, "begin").click()
    wait(page, READY)
    assert page.execute_script("return document.documentElement.scrollWidth") <= width
    bottom = "Math.max(...[...document.querySelectorAll('[data-choice]')].map(b => b.getBoundingClientRect().bottom))"
    assert page.execute_script(f"return {bottom}") <= 700  # no scrolling between the pictures and the buttons
    dark = page.execute_script("return getComputedStyle(document.body).backgroundColor") == "rgb(20, 23, 27)"
    assert dark is (scheme == "dark")
