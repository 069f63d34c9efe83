"""The page of `s2f app` in a real browser: Chromium, driven by Playwright, with a microphone that
plays a file."""

import base64
import importlib.util
import io
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from app import Server
from command_line import files
from conftest import write_photo, write_speech
from PIL import Image
from recordings import write_av

from s2f import SpeechToFace
from s2f.face_detection import installed_detector

CHROMIUM = shutil.which("chromium")
MISSING = [name for name in ("gradio", "playwright") if importlib.util.find_spec(name) is None]
MISSING += [] if CHROMIUM else ["chromium"]
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}"),
]
ROOT = Path(__file__).parents[1]
SPEECH = ROOT / "examples" / "speech.wav"
PHOTOS = ROOT.parent / "shared/data/faces"
READABLE = 4.5  # contrast that WCAG 2.1 (1.4.3, AA) asks of text
RECORDED = 6.0  # of 255, see `test_a_recording_gives_the_face_of_its_sound`
SENT = re.compile(r"/upload(\?|$)")  # where a file goes to
Open = Callable[..., Any]


@pytest.fixture(scope="module")
def temporary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("temporary")


@pytest.fixture(scope="module")
def server(temporary: Path) -> Iterator[Server]:
    """The page of the bundled model."""
    with Server("--no-align", "--max-mb", 2, environment={"TMPDIR": str(temporary)}) as server:
        yield server


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    flags = ["--no-sandbox", "--disable-gpu", "--use-fake-ui-for-media-stream"]
    flags += ["--use-fake-device-for-media-stream"]
    flags += [f"--use-file-for-fake-audio-capture={SPEECH}%noloop"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield browser
        browser.close()


@pytest.fixture
def visit(browser: Any, server: Server) -> Iterator[Open]:
    """Opens the page, as often as wanted; nothing on it may fail or ask another host."""
    contexts, outside, failures = [], [], []

    def look(request: Any) -> None:
        if not request.url.startswith((server.url, "data:", "blob:")):
            outside.append(request.url)

    def open_page(**look_like: Any) -> Any:
        contexts.append(browser.new_context(**look_like))
        page = contexts[-1].new_page()
        page.set_default_timeout(30_000)
        page.on("request", look)
        page.on("pageerror", lambda error: failures.append(str(error)))
        page.goto(server.url)
        page.get_by_role("button", name="Show the face").wait_for()
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert (outside, failures) == ([], [])


def upload(page: Any, path: Path, nth: int = 0) -> None:
    """Choose a file in the nth field of the tab that is open, and wait until the page has it."""
    page.get_by_role("button", name="Upload file").locator("visible=true").nth(nth).click()
    choose(page, path)


def choose(page: Any, path: Path) -> None:
    """Choose a file in the first field that waits for one, and wait until the page has it."""
    fields = page.locator("[role=tabpanel]:visible input[type=file]")
    fields.first.wait_for(state="attached")
    photos = page.locator("[role=tabpanel]:visible img:not(.s2f-answer img)")
    waiting = fields.count()
    with page.expect_response(SENT):
        fields.first.set_input_files(path)
    for _ in range(100):
        if fields.count() < waiting or photos.count():
            return
        page.wait_for_timeout(50)
    pytest.fail("the page does not take the file")


def picture(locator: Any) -> bytes:
    """The file that a picture on the page is."""
    return base64.b64decode(locator.get_attribute("src").partition("base64,")[2])


def pixels(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"), np.float64)


def show(page: Any, button: str = "Show the face") -> bytes:
    """Ask, and wait for the face."""
    page.get_by_role("button", name=button).click()
    face = page.locator(".s2f-face img:visible")
    face.wait_for()
    return picture(face)


def record(page: Any, seconds: float) -> bytes:
    """Record from the microphone: what arrives of it at the server."""
    page.get_by_role("button", name="Record", exact=True).locator("visible=true").click()
    page.wait_for_timeout(1000 * seconds)
    with page.expect_response(SENT) as answer:
        page.get_by_role("button", name="Stop").locator("visible=true").click()
    (path,) = answer.value.json()
    sound = Path(path).read_bytes()
    page.get_by_role("button", name="Play", exact=True).locator("visible=true").wait_for()
    return sound


def test_a_recording_gives_the_face_of_its_sound(visit: Open, temporary: Path) -> None:
    """To the byte that of `s2f generate` for what arrived of the recording at the server.

    For the file that the microphone played, the faces may differ by 6 of 255 on average over the
    pixels, the bound that one recording as WAV and as M4A has too: the browser resamples, starts
    some hundredths of a second late, and goes on after the end.
    """
    before = files(temporary)
    page = visit()
    sound = record(page, 7.5)
    face = show(page)
    model = SpeechToFace.load(device="cpu")
    assert face == model.generate(io.BytesIO(sound)).encoded()
    difference = np.abs(pixels(face) - pixels(model.generate(SPEECH).encoded())).mean()
    assert difference < RECORDED
    assert files(temporary) == before
    page.get_by_role("button", name="Record", exact=True).wait_for()  # the field is empty again


@pytest.fixture(scope="module")
def m4a(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import soundfile

    samples, rate = soundfile.read(SPEECH, dtype="float32", always_2d=True)
    path = tmp_path_factory.mktemp("m4a") / "speech.m4a"
    return write_av(path, samples, rate=rate)


def test_files_give_the_face_that_generate_gives(visit: Open, m4a: Path, temporary: Path) -> None:
    before = files(temporary)
    page = visit()
    model = SpeechToFace.load(device="cpu")
    for path in (SPEECH, m4a):
        upload(page, path)
        page.evaluate("document.querySelectorAll('.s2f-answer img').forEach(x => x.remove())")
        assert show(page) == model.generate(path).encoded()
    pictures = page.locator(".s2f-answer img:visible")
    captions = page.locator(".s2f-answer figcaption:visible").all_inner_texts()
    assert captions[-4:-1] == ["The first second", "The first 3 seconds", "The first 6 seconds"]
    assert pictures.count() == 7  # face, landmarks, spectrogram, four beginnings
    assert picture(pictures.nth(3)) == model.generate(m4a, duration=1).encoded()
    assert all(one.get_attribute("alt") for one in page.locator("img:visible").all())
    assert files(temporary) == before


@pytest.mark.parametrize("content", [b"", b"This is no sound.\n" * 99])
def test_a_broken_file_is_answered_with_a_sentence(
    visit: Open, tmp_path: Path, temporary: Path, content: bytes
) -> None:
    before = files(temporary)
    page = visit()
    path = tmp_path / "broken.wav"
    path.write_bytes(content)
    upload(page, path)
    page.get_by_role("button", name="Show the face").click()
    alert = page.locator(".s2f-error[role=alert]")
    alert.wait_for()
    assert alert.inner_text().startswith("The recording ")
    assert alert.inner_text().endswith(".")
    assert files(temporary) == before


def test_what_is_too_large_or_no_sound_at_all_is_told(visit: Open, tmp_path: Path) -> None:
    page = visit()
    large, film = write_speech(tmp_path / "large.wav", 120), tmp_path / "film.mp4"
    film.write_bytes(b"film")
    page.get_by_role("button", name="Upload file").locator("visible=true").click()
    for path, said in ((large, "maximum allowed size of 2"), (film, "Invalid file type")):
        page.locator("[role=tabpanel]:visible input[type=file]").last.set_input_files(path)
        page.get_by_text(re.compile(said)).first.wait_for()
        page.reload()
        page.get_by_role("button", name="Upload file").locator("visible=true").click()


def test_a_framed_photo_is_drawn_again(visit: Open, tmp_path: Path, temporary: Path) -> None:
    before = files(temporary)
    page = visit()
    page.get_by_role("tab", name="A photo").click()
    photo = write_photo(tmp_path / "photo.jpg")
    upload(page, photo)
    drawn = show(page, "Draw the face again")
    model = SpeechToFace.load(device="cpu")
    assert drawn == model.reconstruct(photo, align=False).encoded()
    assert page.locator(".s2f-answer img:visible").count() == 2
    assert files(temporary) == before


@pytest.mark.skipif(not PHOTOS.is_dir(), reason="the real faces are not there")
@pytest.mark.skipif(installed_detector() != "dlib", reason="dlib is not installed")
def test_a_face_is_found_in_a_photo(browser: Any) -> None:
    photo = min(PHOTOS.rglob("neutral.jpg"))
    with Server("--detector", "dlib") as server:
        page = browser.new_page()
        page.goto(server.url)
        page.get_by_role("tab", name="A photo").click()
        upload(page, photo)
        drawn = show(page, "Draw the face again")
        page.close()
    model = SpeechToFace.load(device="cpu")
    assert drawn == model.reconstruct(photo, detector="dlib").encoded()


def test_two_voices_stand_side_by_side_with_a_slider(visit: Open, tmp_path: Path) -> None:
    page = visit()
    page.get_by_role("tab", name="Two voices").click()
    paths = [write_speech(tmp_path / f"{k}.wav", 2, seed=k) for k in (0, 1)]
    for k in (0, 1):
        page.get_by_role("button", name="Upload file").locator("visible=true").nth(k).click()
    for path in paths:
        choose(page, path)
    page.get_by_role("button", name="Show both faces").click()
    slider = page.get_by_role("slider", name="From the first voice to the second")
    slider.wait_for()
    moving = page.locator(".s2f-between img:visible")
    model = SpeechToFace.load(device="cpu")
    for key, path in (("Home", paths[0]), ("End", paths[1])):
        slider.press(key)
        assert moving.count() == 1
        face = pixels(model.generate(path).encoded())
        assert np.abs(pixels(picture(moving)) - face).mean() < 2  # it is a WebP
    assert slider.get_attribute("aria-valuetext") == "the second voice"
    slider.press("ArrowLeft")
    assert slider.get_attribute("aria-valuetext") == "95 % of the way to the second voice"
    assert "95 %" in (moving.get_attribute("alt") or "")


def test_two_visitors_see_their_own_faces(visit: Open, tmp_path: Path) -> None:
    pages = [visit(), visit()]
    paths = [SPEECH, write_speech(tmp_path / "other.wav", 3, seed=1)]
    for page, path in zip(pages, paths, strict=True):
        upload(page, path)
    for page in pages:
        page.get_by_role("button", name="Show the face").click()
    model = SpeechToFace.load(device="cpu")
    for page, path in zip(pages, paths, strict=True):
        face = page.locator(".s2f-face img:visible")
        face.wait_for()
        assert picture(face) == model.generate(path).encoded()


def test_a_page_that_is_closed_or_loaded_again_holds_nobody_up(
    visit: Open, temporary: Path
) -> None:
    before = files(temporary)
    closed, again, other = visit(), visit(), visit()
    for page in (closed, again, other):
        upload(page, SPEECH)
    for page in (closed, again):
        page.get_by_role("button", name="Show the face").click()
    closed.close()
    again.reload()
    assert show(other)
    again.get_by_role("button", name="Show the face").wait_for()
    assert again.locator(".s2f-answer img").count() == 0
    other.wait_for_timeout(1000)
    # An answer that nobody waits for may have been left out: then its file waits to be swept.
    assert len(files(temporary) - before) <= 2


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
            return
    pytest.fail(f"{wanted} is not reached by the tab key")


def test_a_recording_needs_no_mouse(visit: Open) -> None:
    page = visit()
    press_to(page, "Record")
    page.keyboard.press("Enter")
    page.wait_for_timeout(2500)
    page.get_by_role("button", name="Stop").wait_for()
    page.locator("body").evaluate("() => document.activeElement.blur()")
    press_to(page, "Stop")
    with page.expect_response(SENT):  # which is after the recording can be played
        page.keyboard.press("Enter")
    page.get_by_role("button", name="Play", exact=True).locator("visible=true").wait_for()
    press_to(page, "Show the face")
    page.keyboard.press("Enter")
    page.locator(".s2f-face img:visible").wait_for()


def test_a_file_and_the_tabs_need_no_mouse(visit: Open) -> None:
    page = visit()
    press_to(page, "Two voices")
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Show both faces").wait_for()
    page.get_by_role("tab", name="A voice").focus()
    page.keyboard.press("Enter")
    press_to(page, "Upload file")
    page.keyboard.press("Enter")
    field = page.locator("[role=tabpanel]:visible input[type=file]").first
    field.wait_for(state="attached")
    page.locator("[role=tab][aria-selected=true]").focus()
    with page.expect_file_chooser() as chooser:
        for _ in range(10):
            page.keyboard.press("Tab")
            if page.evaluate("() => document.activeElement.innerText.includes('Upload')"):
                page.keyboard.press("Enter")
                break
    with page.expect_response(SENT):
        chooser.value.set_files(SPEECH)
    press_to(page, "Show the face")
    page.keyboard.press("Enter")
    page.locator(".s2f-face img:visible").wait_for()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_it_all_without_scrolling_sideways_and_with_contrast(
    visit: Open, scheme: str
) -> None:
    page = visit(viewport={"width": 360, "height": 740}, color_scheme=scheme, is_mobile=True)
    upload(page, SPEECH)
    show(page)
    page.get_by_role("button", name="How it was measured").click()
    page.wait_for_timeout(500)
    for tab in ("A voice", "Two voices", "A photo"):
        page.get_by_role("tab", name=tab).click()
        page.wait_for_timeout(300)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        texts = page.evaluate(CONTRASTS)
        assert len(texts) > 20
        assert [text for text in texts if text[1] < READABLE] == []


# Of every text that is seen, the contrast of its colour with what lies behind it (WCAG 2.1).
CONTRASTS = """() => {
  const parse = text => {
    const n = text.match(/[\\d.]+/g).map(Number);
    return {rgb: n.slice(0, 3), alpha: n.length > 3 ? n[3] : 1};
  };
  const over = (top, under) => top.rgb.map((c, k) => c * top.alpha + under[k] * (1 - top.alpha));
  const light = rgb => {
    const [r, g, b] = rgb.map(c => c / 255)
      .map(c => c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = element => {
    if (!element) return [255, 255, 255];
    const own = parse(getComputedStyle(element).backgroundColor);
    return own.alpha === 1 ? own.rgb : over(own, ground(element.parentElement));
  };
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
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


def test_the_page_speaks_english_and_its_parts_have_names(visit: Open) -> None:
    page = visit()
    assert page.locator("html").get_attribute("lang") == "en"
    assert page.title() == "The face behind a voice"
    for button in page.get_by_role("button").locator("visible=true").all():
        name = button.get_attribute("aria-label") or button.inner_text()
        assert name.strip(), button.evaluate("e => e.outerHTML")
    assert page.locator("h1").count() == 1
    assert "never a likeness of the speaker" in page.locator("body").inner_text()
