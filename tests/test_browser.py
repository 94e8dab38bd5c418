"""Pages in a real browser: nothing said on the console, nothing fetched, every picture there, nothing too wide.

Needs Chromium or Chrome, and playwright, which drives it: skipped where either is missing.
"""

import shutil

import pytest
from test_predict import main_of

import clean
import eda
import ensemble
import explain
import inference
import train

playwright = pytest.importorskip("playwright.sync_api")
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.usefixtures("one_accelerator"),
    pytest.mark.skipif(BROWSER is None, reason="needs Chromium or Chrome"),
]
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
QUIET += ["--disable-component-update", "--disable-sync"]


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=BROWSER, args=QUIET)
        yield browser
        browser.close()


def looked_at(browser, path, width):
    """What a browser makes of a page: (messages and errors, addresses asked for, pictures, broken ones, pixels by
    which the page is wider than the window)."""
    page, said, asked = browser.new_page(viewport={"width": width, "height": 900}), [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(path.as_uri())
    broken = "[...document.images].filter(one => !one.complete || !one.naturalWidth).length"
    wide = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    found = page.evaluate("document.images.length"), page.evaluate(broken), page.evaluate(wide)
    page.close()
    return said, [url for url in asked if url != path.as_uri() and not url.startswith("data:")], *found


def test_the_pages_of_a_run_and_of_the_data_open_anywhere(competition, browser, monkeypatch):
    settings = competition.settings("--train.folds", 2)
    train.train_folds(settings, [0, 1])
    main_of(inference, settings, monkeypatch)
    main_of(ensemble, settings, monkeypatch, soft=True)
    main_of(clean, settings, monkeypatch, people=3)
    main_of(explain, settings, monkeypatch, photos=[], layers=[], head="", of="", check=0)
    settings.page = str(competition.root / "report.html")
    monkeypatch.setattr(eda.args, "read", lambda *_: settings)
    eda.main()
    run = competition.root / "run"
    for path in (run / "report.html", run / "clean.html", run / "explain.html", competition.root / "report.html"):
        for width in (1280, 390):
            said, asked, pictures, broken, wide = looked_at(browser, path, width)
            assert (said, asked, broken, wide) == ([], [], 0, 0), f"{path.name} at {width}"
            assert pictures >= 3, path.name


def test_a_page_that_is_broken_is_noticed(browser, tmp_path):
    """The look itself can fail."""
    page = tmp_path / "bad.html"
    page.write_text('<p style="width: 3000px">x<img src="data:image/png;base64,AAAA"><script>nope()</script>')
    said, _, pictures, broken, wide = looked_at(browser, page, 390)
    assert said and (pictures, broken) == (1, 1) and wide > 2000
