"""A picture of the page of `s2f app`, with an answer on it.

    python benchmarks/app_screenshot.py examples/page.jpg
    python benchmarks/app_screenshot.py phone.jpg --phone --dark

The answer is to `examples/speech.wav`. Needs the extras `app` and `browser`, and Chromium.
"""

import argparse
import io
import shutil
from pathlib import Path

from app import EXAMPLE, Server
from PIL import Image

WIDTH = 820  # pixels of the picture; a phone's is narrower


def main() -> None:
    """Take the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("picture", type=Path)
    parser.add_argument("--phone", action="store_true", help="360 pixels wide, all of the page")
    parser.add_argument("--dark", action="store_true")
    options = parser.parse_args()
    from playwright.sync_api import sync_playwright

    size = {"width": 360, "height": 740} if options.phone else {"width": 1000, "height": 1720}
    with Server() as server, sync_playwright() as playwright:
        chromium = shutil.which("chromium")
        flags = ["--no-sandbox", "--disable-gpu"]
        browser = playwright.chromium.launch(executable_path=chromium, args=flags)
        scheme = "dark" if options.dark else "light"
        page = browser.new_page(viewport=size, color_scheme=scheme, is_mobile=options.phone)
        page.goto(server.url)
        page.get_by_role("button", name="Upload file").first.click()
        page.locator("input[type=file]").first.set_input_files(EXAMPLE)
        page.get_by_role("button", name="Play", exact=True).first.wait_for()
        page.get_by_role("button", name="Show the face").click()
        page.locator(".s2f-answer img").first.wait_for()
        page.wait_for_timeout(1500)
        page.evaluate("scrollTo(0, 0)")
        content = page.screenshot(full_page=options.phone)
        browser.close()
    picture = Image.open(io.BytesIO(content)).convert("RGB")
    if not options.phone:
        picture = picture.resize((WIDTH, round(picture.height * WIDTH / picture.width)))
    picture.save(options.picture, quality=82)


if __name__ == "__main__":
    main()
