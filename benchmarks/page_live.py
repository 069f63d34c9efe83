"""How soon a face forms on the page of `s2f app` while one speaks, and how often it changes.

    python benchmarks/page_live.py [--json]

In Chromium, whose microphone plays `examples/speech.wav`, which speaks from its beginning on: times
are of the pictures on the page, from the moment at which the microphone is open. Then the face of
what was heard is compared with that of `SpeechToFace.generate`, to the byte. Needs the extra
`browser`, and Chromium. Fails where a bound is missed.
"""

import argparse
import base64
import io
import itertools
import json
import shutil
from typing import Any

from app import EXAMPLES, Server, require

EXAMPLE = EXAMPLES / "speech.wav"
SECONDS = 7.0  # of speech in the example
FIRST, OFTEN = "first face after the first second of voice, s", "new faces a second"
SAME = "the last face is that of the sound"
AT_MOST, AT_LEAST = {FIRST: 1.5}, {OFTEN: 2.0, SAME: 1.0}

# When the microphone was opened, when each face came to be on the page, and what was sent.
KEEP = """
  window.faces = [];
  const open = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);
  navigator.mediaDevices.getUserMedia = async wanted => {
    const stream = await open(wanted);
    window.opened = performance.now();
    return stream;
  };
  const send = window.fetch;
  window.fetch = (where, how) => {
    if (String(where).startsWith('voice')) window.sent = how.body;
    return send(where, how);
  };
  addEventListener('DOMContentLoaded', () => new MutationObserver(changes => {
    if (changes.some(change => [...change.addedNodes].some(node => node.tagName === 'IMG')))
      window.faces.push(performance.now());
  }).observe(document.querySelector('#voice-face .stack'), {childList: true}));
"""
SENT = """() => new Promise(resolve => {
  const reader = new FileReader();
  reader.onload = () => resolve(reader.result);
  reader.readAsDataURL(window.sent);
})"""


def speak(url: str) -> tuple[list[float], bytes, bytes]:
    """Speak: seconds after the beginning at which faces came, the sound sent, the last face."""
    from playwright.sync_api import sync_playwright

    def content(url: str) -> bytes:
        return base64.b64decode(url.partition("base64,")[2])

    flags = ["--no-sandbox", "--disable-gpu", f"--use-file-for-fake-audio-capture={EXAMPLE}%noloop"]
    flags += [f"--use-fake-{what}-for-media-stream" for what in ("ui", "device")]
    with sync_playwright() as playwright:
        chromium = shutil.which("chromium")
        page = playwright.chromium.launch(executable_path=chromium, args=flags).new_page()
        page.add_init_script(KEEP)
        page.goto(url)
        page.get_by_role("button", name="Record").first.click()
        page.wait_for_timeout(1000 * (SECONDS + 1))
        times: Any = page.evaluate("faces.map(time => (time - opened) / 1000)")
        page.get_by_role("button", name="Stop").click()
        page.get_by_role("heading", name="Explore").wait_for()
        face = page.locator("#voice-face img").last.get_attribute("src")
        return times, content(page.evaluate(SENT)), content(str(face))


def measure() -> dict[str, float]:
    """Speak to the bundled model."""
    from s2f import SpeechToFace

    with Server("--quiet") as server:
        times, sound, face = speak(server.url)
    expected = SpeechToFace.load(device="cpu").generate(io.BytesIO(sound)).encoded()
    spoken = [time for time in times if time < SECONDS]
    return {
        FIRST: times[0] - 1,
        OFTEN: (len(spoken) - 1) / (spoken[-1] - spoken[0]),
        "longest time between two faces, s": max(b - a for a, b in itertools.pairwise(spoken)),
        SAME: float(face == expected),
    }


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    figures = measure()
    bounds = {**AT_MOST, **AT_LEAST}
    if options.json:
        print(json.dumps(figures, indent=1))
    else:
        for name, value in figures.items():
            print(f"{value:10.3g} {name}{f' (bound {bounds[name]})' if name in bounds else ''}")
    require(figures, AT_MOST, AT_LEAST)


if __name__ == "__main__":
    main()
