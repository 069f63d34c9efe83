"""The page of `s2f app` in Chromium, with a microphone that plays a file, and on a telephone."""

import base64
import contextlib
import http.client
import http.server
import importlib.util
import io
import json
import re
import shutil
import signal
import threading
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from command_line import files
from conftest import noise, write_speech
from recordings import write_av
from visitors import Server, pixels

from s2f import SpeechToFace
from s2f.audio import SAMPLE_RATE

CHROMIUM = shutil.which("chromium")
MISSING = [name for name in ("gradio", "playwright") if importlib.util.find_spec(name) is None]
MISSING += [] if CHROMIUM else ["chromium"]
missing = pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")
pytestmark = [pytest.mark.browser, missing]
SPEECH = Path(__file__).parents[1] / "examples" / "speech.wav"
SENT = re.compile(r"/upload(\?|$)")  # where a file goes to
READABLE = 4.5  # contrast that WCAG 2.1 (1.4.3, AA) asks of text


@pytest.fixture(scope="module")
def url(temporary: Path) -> Iterator[str]:
    """The page of the bundled model."""
    with Server("--json", TMPDIR=str(temporary)) as server:
        yield json.loads(server.said)["url"]
        server.end(signal.SIGTERM)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    flags = ["--no-sandbox", "--disable-gpu", f"--use-file-for-fake-audio-capture={SPEECH}%noloop"]
    flags += [f"--use-fake-{what}-for-media-stream" for what in ("ui", "device")]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield browser
        browser.close()


@contextlib.contextmanager
def visit(browser: Any, url: str, **look_like: Any) -> Iterator[Any]:
    """Open the page; nothing on it may fail, or ask another host."""
    context, outside, failures = browser.new_context(**look_like), [], []

    def look(request: Any) -> None:
        if not request.url.startswith((url, "data:", "blob:")):
            outside.append(request.url)

    page = context.new_page()
    page.set_default_timeout(60_000)
    page.on("request", look)
    page.on("pageerror", lambda error: failures.append(str(error)))
    page.goto(url)
    page.get_by_role("button", name="Show the face").wait_for()
    yield page
    context.close()
    assert (outside, failures) == ([], [])


def upload(page: Any, *paths: Path) -> None:
    """Choose files in the fields of the tab that is open, and wait until the page has them."""
    fields = page.locator("[role=tabpanel]:visible input[type=file]")
    for k in range(len(paths)):
        page.get_by_role("button", name="Upload file").locator("visible=true").nth(k).click()
    for waiting, path in zip(range(len(paths), 0, -1), paths, strict=True):
        fields.nth(waiting - 1).wait_for(state="attached")
        with page.expect_response(SENT):
            fields.first.set_input_files(path)
        fields.nth(waiting - 1).wait_for(state="detached")


def shown(page: Any) -> bytes:
    return picture(page.locator(".s2f-face img:visible"))


def picture(locator: Any) -> bytes:
    locator.wait_for()
    return base64.b64decode(locator.get_attribute("src").partition("base64,")[2])


# Drop a file on the field of the tab that is open.
DROP = """([name, type, content]) => {
  const carrier = new DataTransfer();
  const bytes = Uint8Array.from(atob(content), c => c.charCodeAt(0));
  carrier.items.add(new File([bytes], name, {type}));
  const field = [...document.querySelectorAll('.upload-container')].find(e => e.checkVisibility());
  for (const event of ['dragenter', 'dragover', 'drop'])
    field.dispatchEvent(new DragEvent(event, {dataTransfer: carrier, bubbles: true}));
}"""


def press_to(page: Any, wanted: str, most: int = 40) -> None:
    """Go to a button by the tab key alone; whatever has the focus is seen to have it."""
    for _ in range(most):
        page.keyboard.press("Tab")
        name, outline = page.evaluate(
            "() => {const e = document.activeElement;"
            "const name = e.getAttribute('aria-label') || e.innerText || '';"
            "return [name.trim(), getComputedStyle(e).outlineStyle]}"
        )
        if name == wanted:
            assert outline != "none"
            page.keyboard.press("Enter")
            return
    pytest.fail(f"{wanted} is not reached by the tab key")


def test_a_recording_by_the_keys_alone_gives_the_face_of_its_sound(browser, url, temporary):
    # To the byte that of what arrived; that of the file within 6 of 255 on average, as WAV and M4A
    # of one recording: the browser resamples, starts late, and goes on after the end.
    model = SpeechToFace.load(device="cpu")
    with visit(browser, url) as page:
        assert page.locator("html").get_attribute("lang") == "en"
        assert page.title() == "The face behind a voice"
        assert "never a likeness of the speaker" in page.locator("body").inner_text()
        press_to(page, "Record")
        page.wait_for_timeout(7500)
        page.get_by_role("button", name="Stop").wait_for()
        page.locator("body").evaluate("() => document.activeElement.blur()")
        with page.expect_response(SENT) as answer:
            press_to(page, "Stop")
        (path,) = answer.value.json()
        sound = Path(path).read_bytes()
        page.get_by_role("button", name="Play", exact=True).locator("visible=true").wait_for()
        press_to(page, "Show the face")
        face = shown(page)
        assert (face == model.generate(io.BytesIO(sound)).encoded()) is True  # no diff: it hangs
        difference = pixels(face) - pixels(model.generate(SPEECH).encoded())
        assert np.abs(difference).mean() < 6
        assert all(one.get_attribute("alt") for one in page.locator("img:visible").all())
        page.get_by_role("button", name="Record", exact=True).wait_for()  # the field is empty again
        assert not [path for path in temporary.rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    ("name", "kind", "way", "press"),
    [
        ("r.webm", "video/webm", "drop", "double click"),  # of a browser's recorder: sound alone
        ("r.mp4", "video/mp4", "choose", "Enter"),
        ("r.caf", "", "choose", "held"),  # a browser knows no type of it
    ],
)
def test_what_browsers_call_video_is_taken_and_two_presses_are_one_question(
    browser, url, tmp_path, name, kind, way, press
):
    path, samples = tmp_path / name, noise(2)[:, np.newaxis]
    if path.suffix == ".caf":
        soundfile.write(path, samples, SAMPLE_RATE)
    else:
        sound = {"codec": "libopus", "rate": 48_000} if kind == "video/webm" else {"video": True}
        write_av(path, np.repeat(samples, 3, axis=0), **sound)
    asked: list[str] = []
    with visit(browser, url) as page:
        page.on("request", lambda request: "/queue/join" in request.url and asked.append("once"))
        button = page.get_by_role("button", name="Show the face")
        if way == "choose":
            upload(page, path)
        else:
            page.get_by_role("button", name="Upload file").locator("visible=true").click()
            page.locator(".upload-container:visible").wait_for()
            content = base64.b64encode(path.read_bytes()).decode()
            with page.expect_response(SENT):
                page.evaluate(DROP, [name, kind, content])
            page.locator("[role=tabpanel]:visible input[type=file]").wait_for(state="detached")
        if press == "double click":
            button.dblclick()
        elif press == "Enter":
            button.press("Enter")
            button.press("Enter")
        else:  # as a key that repeats
            button.evaluate("button => {for (let k = 0; k < 5; k++) button.click()}")
        assert shown(page)
        page.wait_for_timeout(500)
        assert asked == ["once"] and page.locator(".s2f-error").count() == 0


class Proxy(http.server.ThreadingHTTPServer):
    """A reverse proxy that has a page under /s2f; it leaves that out of what it asks, or not."""

    def __init__(self, url: str, strips: bool) -> None:
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                inside = self.path.removeprefix("/s2f")
                if inside == self.path:
                    self.send_error(404)
                    return
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                asking = http.client.HTTPConnection(urllib.parse.urlsplit(url).netloc)
                kept = {n: v for n, v in self.headers.items() if n not in ("Host", "Connection")}
                asking.request(self.command, inside if strips else self.path, body or None, kept)
                answer = asking.getresponse()
                self.send_response_only(answer.status)
                for name, value in answer.getheaders():
                    if name.lower() not in ("transfer-encoding", "connection"):
                        self.send_header(name, value)
                self.end_headers()
                while block := answer.read1():
                    self.wfile.write(block)
                asking.close()

            do_POST = do_GET

            def log_message(self, *_: object) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def handle_error(self, *_: object) -> None:
        """A page that was closed hears no more."""


def test_behind_a_proxy_all_is_asked_through_it(browser, models):
    with Server("--json", "--root-path", "/s2f", "--model", models / "demo") as server:
        own = json.loads(server.said)["url"]
        for strips in (True, False):
            with Proxy(own, strips) as proxy:
                there = f"http://127.0.0.1:{proxy.server_port}/s2f/"
                with visit(browser, there) as page:  # which fails where another host is asked
                    upload(page, SPEECH)
                    page.get_by_role("button", name="Show the face").click()
                    assert shown(page)
                proxy.shutdown()
        server.end(signal.SIGTERM)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_two_files_on_a_telephone_give_a_slider_and_text_to_read(browser, url, scheme, tmp_path):
    model = SpeechToFace.load(device="cpu")
    paths = [write_speech(tmp_path / f"{k}.wav", 2, seed=k) for k in (0, 1)]
    telephone = {"viewport": {"width": 360, "height": 740}, "is_mobile": True}
    with visit(browser, url, color_scheme=scheme, **telephone) as page:
        page.get_by_role("tab", name="Two voices").click()
        upload(page, *paths)
        page.get_by_role("button", name="Show both faces").click()
        slider = page.get_by_role("slider", name="From the first voice to the second")
        slider.wait_for()
        moving = page.locator(".s2f-between img:visible")
        for key, path in (("Home", paths[0]), ("End", paths[1])):
            slider.press(key)
            assert moving.count() == 1
            face = pixels(model.generate(path).encoded())
            assert np.abs(pixels(picture(moving)) - face).mean() < 2  # it is a WebP
        slider.press("ArrowLeft")
        assert slider.get_attribute("aria-valuetext") == "95 % of the way to the second voice"
        assert "95 %" in (moving.get_attribute("alt") or "")
        page.get_by_role("button", name="How it was measured").click()
        for tab in ("A voice", "Two voices", "A photo"):
            page.get_by_role("tab", name=tab).click()
            page.wait_for_timeout(300)
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
            texts = page.evaluate(CONTRASTS)
            assert len(texts) > 20
            assert [text for text in texts if text[1] < READABLE] == []


def test_a_page_that_is_closed_or_loaded_again_holds_nobody_up(browser, url, temporary):
    before = files(temporary)
    with contextlib.ExitStack() as pages:
        closed, again, other = (pages.enter_context(visit(browser, url)) for _ in range(3))
        for page in (closed, again, other):
            upload(page, SPEECH)
        for page in (closed, again):
            page.get_by_role("button", name="Show the face").click()
        closed.close()
        again.reload()
        other.get_by_role("button", name="Show the face").click()
        assert shown(other)
        again.get_by_role("button", name="Show the face").wait_for()
        assert again.locator(".s2f-answer img").count() == 0
        other.wait_for_timeout(1000)
        # An answer that nobody waits for may have been left out: then its file waits to be swept.
        assert len(files(temporary) - before) <= 2


# Of every text that is seen, the contrast of its colour with what lies behind it (WCAG 2.1).
CONTRASTS = """() => {
  const parse = text => text.match(/[\\d.]+/g).map(Number);  // r, g, b, and perhaps alpha
  const over = ([r, g, b, alpha = 1], under) =>
    [r, g, b].map((c, k) => c * alpha + under[k] * (1 - alpha));
  const light = rgb => rgb.map(c => c / 255)
    .map(c => c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, k) => sum + c * [0.2126, 0.7152, 0.0722][k], 0);
  const ground = element => {
    if (!element) return [255, 255, 255];
    const own = parse(getComputedStyle(element).backgroundColor);
    const seen = own.length < 4 || own[3] === 1;
    return seen ? own.slice(0, 3) : over(own, ground(element.parentElement));
  };
  const found = [], walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    const text = walker.currentNode.textContent.trim();
    if (!text || ['SCRIPT', 'STYLE'].includes(element.tagName) || !element.checkVisibility(
        {opacityProperty: true, visibilityProperty: true}) || element.closest('[disabled]'))
      continue;
    const behind = ground(element);
    const [a, b] = [light(over(parse(getComputedStyle(element).color), behind)), light(behind)];
    found.push([text.slice(0, 40), (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05)]);
  }
  return found;
}"""
