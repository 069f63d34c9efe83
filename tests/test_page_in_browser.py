"""The page of `s2f app` in Chromium, with a microphone that plays a file, and on a telephone."""

import base64
import contextlib
import http.client
import http.server
import importlib.util
import io
import json
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
from command_line import Done, files
from conftest import noise, write_speech
from PIL import Image
from recordings import write_av
from visitors import Server, picture, pixels

from s2f import SpeechToFace
from s2f.audio import SAMPLE_RATE

CHROMIUM = shutil.which("chromium")
NEEDED = ("starlette", "playwright", "axe_playwright_python")
MISSING = [name for name in NEEDED if importlib.util.find_spec(name) is None]
MISSING += [] if CHROMIUM else ["chromium"]
missing = pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")
pytestmark = [pytest.mark.browser, missing]
EXAMPLES = Path(__file__).parents[1] / "examples"
SPEECH = EXAMPLES / "speech.wav"  # 7.2 s
TAGS = [f"wcag{version}{level}" for version in ("2", "21", "22") for level in ("a", "aa")]
TABS = ("A voice", "Two voices", "A photo")


@pytest.fixture(scope="module")
def url(temporary: Path) -> Iterator[str]:
    """The page of the bundled model."""
    with Server("--json", TMPDIR=str(temporary)) as server:
        yield json.loads(server.said)["url"]
        server.end(signal.SIGTERM)


@pytest.fixture(scope="module")
def model() -> SpeechToFace:
    return SpeechToFace.load(device="cpu")


@pytest.fixture(scope="module")
def tiny(models: Path) -> Iterator[str]:
    """The page of tiny models, which a proxy has under a path; it hears 3 s."""
    options = ("--json", "--model", models / "demo", "--models", models, "--max-seconds", 3)
    with Server(*options, "--root-path", "/s2f") as server:
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
def visit(browser: Any, url: str, *scripts: str, fails: bool = False, **look_like: Any) -> Any:
    """Open the page; nothing on it may fail, be refused by its policy, or ask another host."""
    context, wrong = browser.new_context(**look_like), []

    def look(request: Any) -> None:
        if not request.url.startswith((url, "data:", "blob:")):
            wrong.append(request.url)

    page = context.new_page()
    page.set_default_timeout(60_000)
    for script in (KEEP, *scripts):
        page.add_init_script(script)
    page.on("request", look)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    if not fails:
        page.on("console", lambda said: wrong.append(said.text))
    page.goto(url)
    yield page
    context.close()
    assert wrong == []


# Keep what the page sends, and the microphones that it opens.
KEEP = """
  window.sent = [];
  const send = window.fetch, media = navigator.mediaDevices;
  window.fetch = (where, how) => {
    window.sent.push([String(where), how?.body]);
    return send(where, how);
  };
  if (media) {
    const open = media.getUserMedia.bind(media);
    window.tracks = [];
    media.getUserMedia = async wanted => {
      await window.allowed;
      const stream = await open(wanted);
      window.tracks.push(...stream.getTracks());
      return stream;
    };
  }
"""


def asked(page: Any, path: str) -> int:
    """How often the page has asked for something."""
    return page.evaluate("path => sent.filter(([where]) => where.startsWith(path)).length", path)


def sound_sent(page: Any) -> bytes:
    """The recording that the page sent last."""
    content = page.evaluate("""async () => {
      const [, body] = sent.findLast(([where]) => where.startsWith('voice'));
      const reader = new FileReader();
      const done = new Promise(resolve => reader.onload = resolve);
      reader.readAsDataURL(body);
      await done;
      return reader.result;
    }""")
    return base64.b64decode(content.partition("base64,")[2])


def shown(page: Any) -> bytes:
    """The newest face on the tab that is open."""
    newest = page.locator("[role=tabpanel]:visible .stack img").last
    return picture(newest.get_attribute("src"))


def status(page: Any, name: str = "voice") -> str:
    return page.locator(f"#{name} .status").inner_text()


def press(page: Any, name: str) -> None:
    page.get_by_role("button", name=name, exact=True).locator("visible=true").first.click()


def explored(page: Any) -> Any:
    """Wait for an answer, and what can be done with it; faces that only form are no PNG."""
    block = page.locator("[role=tabpanel]:visible .explore")
    block.get_by_role("heading", name="Explore").wait_for()
    page.locator(
        "[role=tabpanel]:visible .stack img:last-of-type[src^='data:image/png']"
    ).wait_for()
    return block


def choose(page: Any, *paths: Path) -> None:
    fields = page.locator("[role=tabpanel]:visible input[type=file]")
    for k, path in enumerate(paths):
        fields.nth(k).set_input_files(path)


def press_to(page: Any, wanted: str, most: int = 40) -> None:
    """Go to a button by the tab key alone; whatever has the focus is seen to have it."""
    for _ in range(most):
        page.keyboard.press("Tab")
        name, outline = page.evaluate(
            "() => {const e = document.activeElement, seen = e.closest('.button') ?? e;"
            "const name = e.getAttribute('aria-label') || e.innerText || '';"
            "return [name.trim(), getComputedStyle(seen).outlineStyle]}"
        )
        assert outline != "none"
        if name == wanted:
            page.keyboard.press("Enter")
            return
    pytest.fail(f"{wanted} is not reached by the tab key")


def faces_drawn(page: Any) -> list[bool]:
    """Of each piece of sound that was answered from now on, whether there was a new face."""
    drawn: list[bool] = []

    def look(response: Any) -> None:
        if urllib.parse.urlsplit(response.url).path.endswith("/live"):
            drawn.append(int(response.headers["content-length"]) > 1000)

    page.on("response", look)
    return drawn


def wait_until(page: Any, condition: Any) -> None:
    for _ in range(600):
        if condition():
            return
        page.wait_for_timeout(100)
    pytest.fail("nothing happened for a minute")


# The least that the newest faces cover the ground, once one has covered it.
WATCH = """
  window.covered = null;
  const look = () => {
    const faces = [...document.querySelectorAll('#voice-face img')];
    const most = Math.max(0, ...faces.map(face => Number(getComputedStyle(face).opacity)));
    if (most === 1 || window.covered !== null) window.covered = Math.min(window.covered ?? 1, most);
    requestAnimationFrame(look);
  };
  look();
"""


# Of the spectrogram that runs, which columns of its steps are not black.
COLUMNS = """() => {
  const seen = document.querySelector('#voice canvas'), {width, height} = seen;
  const copy = new OffscreenCanvas(width, height).getContext('2d', {willReadFrequently: true});
  copy.drawImage(seen, 0, 0);
  const {data} = copy.getImageData(0, 0, width, height);
  return Array.from({length: width / 2}, (_, k) => Array.from({length: height},
    (_, y) => data[4 * (y * width + 2 * k)]).some(red => red > 40));
}"""


def test_a_face_forms_while_one_speaks_and_ends_as_that_of_the_sound(
    browser, url, model, temporary, tmp_path
):
    # To the byte that of what arrived; that of the file within 6 of 255 on average, as WAV and M4A
    # of one recording: the browser resamples, starts late, and goes on after the end.
    with visit(browser, url, WATCH) as page:
        assert page.locator("html").get_attribute("lang") == "en"
        assert page.title() == "The face behind a voice"
        assert "never a likeness of the speaker" in page.locator("body").inner_text()
        drawn = faces_drawn(page)
        page.get_by_label("Show the landmarks").locator("visible=true").check()
        press_to(page, "Record")
        # Its 7 s bring a face each 0.25 s, unless the machine is busy; after them it is silent.
        wait_until(page, lambda: any(drawn) and not any(drawn[-8:]))
        forming = shown(page)
        assert sum(drawn) >= 3 and page.evaluate("covered") == 1
        before = page.evaluate(COLUMNS)
        assert sum(before) > 20  # of 240: sound ran through it
        assert page.locator("#voice-face circle").count() == 68
        assert page.locator("#voice-face circle").first.is_visible()
        seen = len(drawn)
        wait_until(page, lambda: len(drawn) >= seen + 4)
        assert page.evaluate(COLUMNS) != before  # it runs on in silence
        assert not any(drawn[-4:]) and (shown(page) == forming) is True
        assert page.evaluate("tracks.map(track => track.readyState)") == ["live"]
        page.keyboard.press("Enter")  # the button that has the focus still
        explored(page)
        assert page.evaluate("tracks.map(track => track.readyState)") == ["ended"]
        sound, face = sound_sent(page), shown(page)
        assert (face == model.generate(io.BytesIO(sound)).encoded()) is True  # no diff: it hangs
        difference = pixels(face) - pixels(model.generate(SPEECH).encoded())
        assert np.abs(difference).mean() < 6
        (tmp_path / "sent.wav").write_bytes(sound)
        assert Done("generate", tmp_path / "sent.wav", "-o", tmp_path / "face.png").code == 0
        written = pixels((tmp_path / "face.png").read_bytes())
        assert np.array_equal(pixels(face), written)
        assert "The model heard 7" in status(page) and len(sound) < 2 * 48_000 * 30
        assert page.locator("img:not([alt])").count() == 0
        assert not files(temporary)


def test_the_example_is_explored_and_saved(browser, url, model, tmp_path):
    expected = model.generate(SPEECH)
    with visit(browser, url) as page:
        drawn = faces_drawn(page)
        page.get_by_role("button", name="Hear this example").first.dblclick()
        block = explored(page)
        own = shown(page)
        assert (own == expected.encoded()) is True and sum(drawn) >= 3
        assert asked(page, "voice") == asked(page, "example.wav") == 1  # two presses, one question

        page.get_by_label("Show the landmarks").locator("visible=true").check()
        centres = page.locator("#voice-face circle").evaluate_all(
            "circles => circles.map(c => new DOMMatrix(getComputedStyle(c).transform))"
            ".map(m => [m.e - 0.5, m.f - 0.5])"
        )
        wait_until(page, lambda: page.locator("#voice-face circle").first.is_visible())
        assert np.abs(np.array(centres) - expected.landmarks).max() < 0.051  # sent to a tenth

        sliders = block.get_by_role("slider")
        names = [slider.get_attribute("aria-label") for slider in sliders.all()]
        assert names == ["The voice", *[f"Shape, axis {k}" for k in (1, 2, 3)]]
        for slider in sliders.all():
            before = shown(page)
            slider.press("End")
            wait_until(page, lambda before=before: shown(page) != before)
        said = sliders.first.get_attribute("aria-valuetext")
        assert said == "100 % of the way to 6 semitones higher"
        page.wait_for_timeout(500)
        moved = shown(page)
        press(page, "Reset")
        wait_until(page, lambda: shown(page) == own)
        assert [slider.input_value() for slider in sliders.all()] == ["0"] * 4
        sliders.first.press("ArrowLeft")
        wait_until(page, lambda: shown(page) != own)
        sliders.first.press("ArrowRight")  # by hand as by the button
        wait_until(page, lambda: shown(page) == own)

        def saved(name: str, file: str) -> Image.Image:
            with page.expect_download() as download:
                press(page, name)
            assert download.value.suggested_filename == file
            download.value.save_as(tmp_path / file)
            return Image.open(io.BytesIO((tmp_path / file).read_bytes()))

        face = saved("Save the face", "face.png")
        assert ((tmp_path / "face.png").read_bytes() == own) is True
        assert face.text["Software"].startswith("s2f ") and "Networks" in face.text
        for slider in sliders.all():
            slider.press("End")
        wait_until(page, lambda: shown(page) == moved)
        face = saved("Save the face", "face.png")
        assert np.abs(np.asarray(face, float) - pixels(moved)).mean() < 2  # that one is a WebP
        assert face.text["Software"].startswith("s2f ")
        forming = saved("Save how it forms", "forming.webp")
        assert (forming.format, forming.is_animated) == ("WEBP", True) and forming.n_frames > 4
        sheet = saved("Save a sheet", "faces.png")
        assert min(sheet.size) > 2 * 224 and sheet.text["Software"].startswith("s2f ")


@pytest.mark.parametrize("width", [360, 1200])
def test_the_face_is_beside_the_voice_or_above_its_button(browser, tiny, width):
    with visit(browser, tiny, viewport={"width": width, "height": 740}) as page:
        for tab in TABS:
            page.get_by_role("tab", name=tab, exact=True).click()
            face = page.locator("[role=tabpanel]:visible .stack").bounding_box()
            button = page.locator("[role=tabpanel]:visible .buttons").first.bounding_box()
            if width == 360:
                assert face["y"] + face["height"] <= button["y"]
            else:
                assert button["x"] + button["width"] <= face["x"]
                assert abs(button["y"] - face["y"]) < 60


@pytest.mark.parametrize(
    ("name", "kind", "way"),
    [
        ("r.webm", "video/webm", "drop"),  # of a browser's recorder: sound alone
        ("r.mp4", "video/mp4", "choose"),
        ("r.caf", "", "choose"),  # a browser knows no type of it
        ("r.caf", "", "drop"),
    ],
)
def test_what_browsers_call_video_is_taken(browser, tiny, tmp_path, name, kind, way):
    path, samples = tmp_path / name, noise(2)[:, np.newaxis]
    if path.suffix == ".caf":
        soundfile.write(path, samples, SAMPLE_RATE)
    else:
        sound = {"codec": "libopus", "rate": 48_000} if kind == "video/webm" else {"video": True}
        write_av(path, np.repeat(samples, 3, axis=0), **sound)
    with visit(browser, tiny) as page:
        if way == "choose":
            choose(page, path)
        else:
            content = base64.b64encode(path.read_bytes()).decode()
            page.locator("#voice").evaluate(DROP, [name, kind, content])
        explored(page)
        assert shown(page)
        assert sound_sent(page) == path.read_bytes()
        assert page.locator(".status.wrong").count() == 0


# Drop a file.
DROP = """(field, [name, type, content]) => {
  const carrier = new DataTransfer();
  const bytes = Uint8Array.from(atob(content), c => c.charCodeAt(0));
  carrier.items.add(new File([bytes], name, {type}));
  for (const event of ['dragenter', 'dragover', 'drop'])
    field.dispatchEvent(new DragEvent(event, {dataTransfer: carrier, bubbles: true}));
}"""


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


@pytest.mark.parametrize("strips", [True, False])
def test_behind_a_proxy_all_is_asked_through_it(browser, tiny, strips):
    with Proxy(tiny, strips) as proxy:
        there = f"http://127.0.0.1:{proxy.server_port}/s2f/"
        with visit(browser, there) as page:  # which fails where another host is asked
            drawn = faces_drawn(page)
            press(page, "Record")
            wait_until(page, lambda: any(drawn))
            press(page, "Stop")
            explored(page).get_by_role("slider").first.press("End")
            wait_until(page, lambda: asked(page, "draw"))
            press(page, "What it knows, and what is kept")
            page.get_by_role("heading", name="The model demo").wait_for()
            page.keyboard.press("Escape")
            page.get_by_role("tab", name="A photo").click()
            press(page, "Take this example")
            explored(page)
        proxy.shutdown()


def test_of_several_models_the_chosen_one_answers(browser, tiny, models, tmp_path):
    path = write_speech(tmp_path / "a.wav", 2)
    with visit(browser, tiny) as page:
        for name in ("demo", "other"):
            if name == "other":  # what is chosen already nobody can choose: it is not tried here
                page.get_by_label("Model").select_option(name)
                page.wait_for_url(f"**?model={name}")
            assert page.get_by_label("Model").input_value() == name
            choose(page, path)
            explored(page)
            model = SpeechToFace.load(models / name, device="cpu")
            assert shown(page) == model.generate(path).encoded()
            press(page, "What it knows, and what is kept")
            page.get_by_role("heading", name=f"The model {name}").wait_for()
            page.keyboard.press("Escape")


def test_the_card_is_in_a_dialog_that_keys_open_stay_in_and_close(browser, url):
    with visit(browser, url) as page:
        button = "What it knows, and what is kept"
        press_to(page, button)
        dialog = page.get_by_role("dialog", name=button)
        dialog.get_by_text("It must not be used to identify").first.wait_for()
        assert "Nothing that you send is kept" in dialog.inner_text()
        dialog.get_by_text("How it was measured").click()
        assert dialog.get_by_role("table").count()
        for _ in range(8):
            page.keyboard.press("Tab")
            # The window has its turn between the last thing and the first.
            assert page.evaluate("document.activeElement.closest('dialog, body:not(:has(:focus))')")
        page.keyboard.press("Escape")
        assert not dialog.is_visible()
        assert page.evaluate("document.activeElement.id") == "open-about"
        page.keyboard.press("Enter")
        press(page, "Close")
        assert not dialog.is_visible()


def test_two_voices_give_a_slider(browser, url, model, tmp_path):
    paths = [write_speech(tmp_path / f"{k}.wav", 2, seed=k) for k in (0, 1)]
    with visit(browser, url, viewport={"width": 360, "height": 740}, is_mobile=True) as page:
        page.get_by_role("tab", name="Two voices").click()
        choose(page, *paths)
        explored(page)
        slider = page.get_by_role("slider", name="From the first voice to the second")
        for key, path in (("End", paths[1]), ("Home", paths[0])):
            before = shown(page)
            slider.press(key)
            wait_until(page, lambda before=before: shown(page) != before)
            face = pixels(model.generate(path).encoded())
            assert np.abs(pixels(shown(page)) - face).mean() < 2  # it may be a WebP
        for _ in range(19):
            slider.press("ArrowRight")
        assert slider.get_attribute("aria-valuetext") == "95 % of the way to the second voice"


def test_the_example_photo_is_drawn_by_one_press_or_two(browser, url, model):
    expected = model.reconstruct(EXAMPLES / "face.png", align=False).encoded()
    with visit(browser, url) as page:
        page.get_by_role("tab", name="A photo").click()
        page.get_by_role("button", name="Take this example").dblclick()
        explored(page)
        assert (shown(page) == expected) is True and asked(page, "photo") == 1


def test_a_page_that_is_closed_or_loaded_again_holds_nobody_up(browser, url, temporary):
    with contextlib.ExitStack() as pages:
        closed, again, other = (pages.enter_context(visit(browser, url)) for _ in range(3))
        for page in (closed, again, other):
            choose(page, SPEECH)
        closed.close()
        again.reload()
        explored(other)
        assert again.locator(".explore h2").count() == 0
        assert not files(temporary)


# The microphone may be used, or not, when the test says so.
LATER = "window.allowed = new Promise((yes, no) => Object.assign(window, {yes, no}));"


def test_a_microphone_that_comes_too_late_is_closed(browser, tiny):
    with visit(browser, tiny, LATER) as page:
        press(page, "Record")
        wait_until(page, lambda: "Waiting for the microphone" in status(page))
        press(page, "Stop")
        press(page, "Record")  # at once, while the first still waits
        page.evaluate("yes()")
        wait_until(page, lambda: page.evaluate("tracks.length") == 2)
        wait_until(page, lambda: "Speak now" in status(page))
        assert sorted(page.evaluate("tracks.map(track => track.readyState)")) == ["ended", "live"]
        press(page, "Stop")
        page.get_by_role("button", name="Record").first.wait_for()
        wait_until(page, lambda: "live" not in page.evaluate("tracks.map(t => t.readyState)"))


@pytest.mark.parametrize(
    ("error", "said"),
    [
        ("NotAllowedError", "The microphone may not be used: allow it in the browser."),
        ("NotFoundError", "There is no microphone."),
        ("NotReadableError", "another program may have it"),
    ],
)
def test_a_microphone_that_is_refused_leaves_what_was_shown(browser, tiny, speech, error, said):
    with visit(browser, tiny, LATER) as page:
        choose(page, speech)
        explored(page)
        face = shown(page)
        press(page, "Record")
        wait_until(page, lambda: "Waiting for the microphone" in status(page))
        page.evaluate("name => no(new DOMException('', name))", error)
        wait_until(page, lambda: said in status(page))
        assert "A file can be chosen instead." in status(page)
        assert page.get_by_role("button", name="Record").first.is_visible()
        assert shown(page) == face and explored(page)


@pytest.mark.parametrize("rate", [16_000, 48_000])
def test_at_any_rate_it_hears_up_to_its_limit(browser, tiny, rate):
    device = f"""window.AudioContext = class extends AudioContext {{
      constructor() {{super({{sampleRate: {rate}}})}}
    }}"""
    with visit(browser, tiny, device) as page:
        press(page, "Record")
        explored(page)  # it stops by itself
        heard = soundfile.info(io.BytesIO(sound_sent(page)))
        assert (heard.samplerate, heard.duration) == (rate, pytest.approx(3, abs=0.06))
        assert page.evaluate("tracks[0].readyState") == "ended"


def test_a_new_recording_ends_what_came_before_it(browser, tiny, speech):
    """A file while somebody speaks, a recording before the answer, another tab, another voice."""
    with visit(browser, tiny) as page:
        drawn = faces_drawn(page)
        press(page, "Record")
        wait_until(page, lambda: len(drawn) >= 2)
        choose(page, speech)
        explored(page)
        assert page.evaluate("tracks[0].readyState") == "ended" and asked(page, "voice") == 1
        assert sound_sent(page) == speech.read_bytes()

        held: list[Any] = []
        page.route("**/voice?*", lambda route: held.append(route))
        choose(page, speech)
        wait_until(page, lambda: held)
        press(page, "Record")
        wait_until(page, lambda: "Speak now" in status(page))
        assert page.locator("#voice-explore h2").count() == 0  # sliders of another face
        held.pop().abort()  # which was given up anyway
        page.unroute("**/voice?*")
        page.wait_for_timeout(300)
        assert "Speak now" in status(page)
        page.get_by_role("tab", name="Two voices").click()
        assert page.evaluate("tracks[1].readyState") == "ended"
        wait_until(page, lambda: asked(page, "voice") == 3)  # and is answered

        page.locator("#first .record").click()
        wait_until(page, lambda: "Speak now" in status(page, "first"))
        seen = len(drawn)
        wait_until(page, lambda: len(drawn) >= seen + 2)
        page.locator("#second .record").click()  # the first is answered, and the second is heard
        wait_until(page, lambda: "The model heard" in status(page, "first"))
        wait_until(page, lambda: "Speak now" in status(page, "second"))
        seen = len(drawn)
        wait_until(page, lambda: len(drawn) >= seen + 2)
        assert page.locator("#voices-explore h2").count() == 0
        press(page, "Stop")
        explored(page)
        page.locator("#first .record").click()
        wait_until(page, lambda: "Speak now" in status(page, "first"))
        assert page.locator("#voices-explore h2").count() == 0  # a slider from another voice
        press(page, "Stop")


def test_a_key_that_is_held_down_is_one_press(browser, tiny):
    with visit(browser, tiny) as page:
        page.locator("#voice .record").focus()
        for _ in range(4):
            page.keyboard.down("Enter")  # repeats, until it is let go
        page.keyboard.up("Enter")
        wait_until(page, lambda: "Speak now" in status(page))
        page.locator("#voice .record").press("Enter")
        page.get_by_role("button", name="Record").first.wait_for()


def test_a_server_that_is_gone_is_said_wherever_it_is_asked(browser, tiny, speech):
    gone = "The program that serves this page cannot be reached. Is it still running?"
    with visit(browser, tiny, fails=True) as page:
        choose(page, speech)
        slider = explored(page).get_by_role("slider").first
        page.context.set_offline(True)
        slider.press("End")
        page.locator("#voice-explore .status.wrong", has_text=gone).wait_for()
        page.context.set_offline(False)
        press(page, "Record")
        wait_until(page, lambda: "Speak now" in status(page))
        page.context.set_offline(True)
        wait_until(page, lambda: status(page) == gone)  # while one speaks
        page.context.set_offline(False)
        wait_until(page, lambda: "Speak now" in status(page))
        page.context.set_offline(True)
        wait_until(page, lambda: status(page) == gone)
        press(page, "Stop")
        wait_until(page, lambda: asked(page, "voice") == 2)
        page.locator("#voice progress").wait_for(state="hidden")
        assert status(page) == gone
        page.get_by_role("tab", name="A photo").click()
        press(page, "Take this example")
        wait_until(page, lambda: status(page, "photo") == gone)
        press(page, "What it knows, and what is kept")
        page.locator("#card", has_text=gone).wait_for()


def test_no_rule_of_wcag_is_broken(browser, url, tmp_path):
    """By axe-core, which knows levels A and AA of WCAG 2.0 to 2.2, contrast among them."""
    from axe_playwright_python.sync_playwright import Axe

    paths = [write_speech(tmp_path / f"{k}.wav", 2, seed=k) for k in (0, 1)]
    nothing = tmp_path / "nothing.wav"
    nothing.write_bytes(b"nothing")
    axe, looked = Axe(), 0
    with visit(browser, url) as page:

        def look(state: str) -> None:
            nonlocal looked
            for width in (1200, 360):
                page.set_viewport_size({"width": width, "height": 740})
                assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
                for scheme in ("light", "dark"):
                    page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
                    found = axe.run(page, options={"runOnly": TAGS, "resultTypes": ["violations"]})
                    broken = [(rule["id"], rule["nodes"]) for rule in found.response["violations"]]
                    assert broken == [], (state, width, scheme)
                    checked = {rule["id"] for rule in found.response["passes"]}
                    assert {"color-contrast", "button-name", "target-size"} <= checked
                    looked += 1

        for tab, chosen in zip(TABS, (paths[:1], paths, [EXAMPLES / "face.png"]), strict=True):
            page.get_by_role("tab", name=tab, exact=True).click()
            look(tab)
            choose(page, *chosen)
            explored(page)
            choose(page, nothing)
            page.locator("[role=tabpanel]:visible .status.wrong").first.wait_for()
            look(f"{tab}, answered and refused")
        press(page, "What it knows, and what is kept")
        page.get_by_text("How it was measured").click()
        look("dialog")
    assert looked == 28
