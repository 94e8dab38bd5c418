"""Pages in a real browser: nothing said on the console, nothing fetched, every picture there, nothing too wide.

Needs Chromium or Chrome, and playwright, which drives it: skipped where either is missing.
"""

import shutil

import pytest
from helpers import MASK, write_photo

playwright = pytest.importorskip("playwright.sync_api")
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("one_accelerator"),
    pytest.mark.skipif(BROWSER is None, reason="needs Chromium or Chrome"),
]
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
QUIET += ["--disable-component-update", "--disable-sync"]
CAMERA = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=BROWSER, args=QUIET + CAMERA)
        yield browser
        browser.close()


# the least contrast of text with what is behind it (WCAG), and where: [4.6, "p: words"]
CONTRAST = """() => {
  const rgb = text => { const n = text.match(/[\\d.]+/g).map(Number);
    const scale = text.startsWith('color(') ? 255 : 1;
    return [...n.slice(0, 3).map(v => v * scale), n[3] ?? 1] };
  const linear = v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
  const light = c => { const [r, g, b] = c.map(v => linear(v / 255));
    return .2126 * r + .7152 * g + .0722 * b };
  let worst = [21, ''];
  for (const one of document.querySelectorAll('body *')) {
    const own = [...one.childNodes].some(node => node.nodeType === 3 && node.textContent.trim());
    if (!own || one.closest('svg') || !one.getClientRects().length) continue;
    let behind = one, back = [255, 255, 255, 0];
    while (behind && !(back = rgb(getComputedStyle(behind).backgroundColor))[3]) behind = behind.parentElement;
    const pair = [rgb(getComputedStyle(one).color), back[3] ? back : [255, 255, 255, 1]].map(c => light(c.slice(0, 3)));
    const ratio = (Math.max(...pair) + .05) / (Math.min(...pair) + .05);
    if (ratio < worst[0]) worst = [ratio, one.tagName + ': ' + one.textContent.slice(0, 60)];
  }
  return worst }"""
# tables and blocks that are cut off at their right
CUT = """[...document.querySelectorAll('.scroll, pre')].filter(one => one.scrollWidth > one.clientWidth + 1)
  .map(one => one.innerText.slice(0, 60))"""


def looked_at(browser, path, width, scheme="light"):
    """What a browser makes of a page: (messages and errors, addresses asked for, broken pictures, pixels by which the
    page is wider than the window, tables that are cut off, whether text is hard to read), pictures."""
    page, said, asked = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme), [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(path.as_uri())
    broken = "[...document.images].filter(one => !one.complete || !one.naturalWidth || !one.alt).length"
    wide = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    contrast, where = page.evaluate(CONTRAST)
    found = page.evaluate(broken), page.evaluate(wide), page.evaluate(CUT), "" if contrast >= 4.5 else where
    pictures = page.evaluate("document.querySelectorAll('img, svg').length")
    page.close()
    return (said, [url for url in asked if url != path.as_uri() and not url.startswith("data:")], *found), pictures


def test_a_page_that_is_broken_is_noticed(browser, tmp_path):
    """The look itself can fail."""
    page = tmp_path / "bad.html"
    table = '<div class="scroll" style="overflow: auto; width: 90px"><p style="width: 200px; color: #999">cut</p></div>'
    page.write_text(f'<p style="width: 3000px">x<img src="data:image/png;base64,AAAA"><script>nope()</script>{table}')
    (said, _, broken, wide, cut, pale), pictures = looked_at(browser, page, 390)
    assert said and (pictures, broken, cut, pale) == (1, 1, ["cut"], "P: cut") and wide > 2000


# is the top of the first answer in the window, and in it as much of the answer as the window can hold?
IN_VIEW = """() => { const box = document.querySelector('.card').getBoundingClientRect();
  return box.top >= 0 && box.top < innerHeight / 2 }"""


def test_the_page_speaks_the_language_of_the_browser(served, browser, tmp_path):
    write_photo(tmp_path / "a.jpg", 1, (90, 120))
    context = browser.new_context(viewport={"width": 390, "height": 900}, locale="ko-KR")
    page = context.new_page()
    page.goto(served[0])
    page.get_by_role("tab", name="그림 만들기").wait_for()
    assert page.evaluate("document.querySelector('.files').offsetHeight") > 150
    page.locator("input[type=file]").first.set_input_files([tmp_path / "a.jpg"])
    page.locator(".card").first.wait_for()
    page.wait_for_function(IN_VIEW)
    page.wait_for_function("document.querySelector('.files').offsetHeight < 120")  # the drop zone has shrunk
    assert "확신도" in page.locator(".card").first.inner_text()
    page.get_by_text("모델이 보는 곳", exact=True).click()
    page.get_by_alt_text("사진 위의 Grad-CAM 지도").wait_for()  # asked for after the answer
    assert page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") == 0
    context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_word_of_the_demo_can_be_read(served, browser, tmp_path, scheme):
    write_photo(tmp_path / "a.jpg", 1, (90, 120))
    (tmp_path / "b.jpg").write_bytes(b"no photo")
    page = browser.new_page(viewport={"width": 390, "height": 900}, color_scheme=scheme)
    page.goto(served[0])
    page.locator("input[type=file]").first.set_input_files([tmp_path / "a.jpg", tmp_path / "b.jpg"])
    page.locator(".card").nth(1).wait_for()
    tabs, pale = page.get_by_role("tab").all_inner_texts(), {}
    for name in tabs:
        page.get_by_role("tab", name=name, exact=True).click()
        page.wait_for_timeout(300)  # colours fade in
        contrast, where = page.evaluate(CONTRAST)
        if contrast < 4.5:
            pale[name] = contrast, where
    page.close()
    assert len(tabs) > 2 and not pale


@pytest.mark.parametrize("width", [1280, 390])
def test_a_visitor_uploads_films_makes_and_saves(served, browser, tmp_path, width):
    url, desk, *_ = served
    context = browser.new_context(viewport={"width": width, "height": 900}, permissions=["camera"])
    page, said, outside = context.new_page(), [], []
    page.on("console", lambda message: said.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: said.append(str(error)))
    own = (url, "data:", "blob:")
    page.on("request", lambda request: None if request.url.startswith(own) else outside.append(request.url))
    page.goto(url)

    write_photo(tmp_path / "a.jpg", 1, (90, 120))
    (tmp_path / "b.jpg").write_bytes(b"no photo")
    for _ in range(2):  # the field is empty again after each answer
        page.locator("input[type=file]").first.set_input_files([tmp_path / "a.jpg", tmp_path / "b.jpg"])
        page.locator(".card").nth(1).wait_for()
        assert "sure" in page.locator(".card").nth(0).inner_text()
        page.wait_for_function(IN_VIEW)  # the answer, without scrolling
        assert "can't be classified: not readable" in page.locator(".card").nth(1).inner_text()
    with page.expect_download() as download:
        page.get_by_text("Save answers.csv").click()
    assert download.value.suggested_filename == "answers.csv"
    assert download.value.path().read_text("utf-8-sig").startswith("file,answer,probability,mask,gender,age,said\n")

    page.get_by_role("tab", name="Webcam").click()
    shutter = page.locator("button[aria-label='capture photo']:visible")
    for camera in range(2):
        page.get_by_text("Click to Access Webcam").first.click()
        shutter.nth(camera).wait_for()
    shutter.first.click()
    page.get_by_role("tabpanel").locator(".card:visible").first.wait_for()
    shutter.filter(has_text="Record").click()
    page.get_by_role("tabpanel").locator(".card:visible").nth(1).wait_for()

    page.get_by_role("tab", name="Make a picture").click()
    for label in MASK.classes:
        page.get_by_label(label, exact=True).check()
        page.get_by_role("button", name="Make it").click()
        page.get_by_role("img", name=label, exact=True).wait_for()
        with page.expect_download() as download:
            page.get_by_text("Save the picture").click()
        assert download.value.suggested_filename.startswith(label.split()[0])
        assert download.value.path().read_bytes().startswith(b"\x89PNG")
    wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert (said, outside, wide) == ([], [], 0)
    assert not [path for path in desk.folder.rglob("*") if path.is_file() and path not in desk.kept]
    context.close()
