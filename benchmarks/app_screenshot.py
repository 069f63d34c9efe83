"""A picture of the page of `s2f app`, with an answer on it.

    python benchmarks/app_screenshot.py examples/page.jpg
    python benchmarks/app_screenshot.py phone.jpg --phone --dark

The answer is to the page's own example, which it hears to its end. Needs the extra `browser`, and
Chromium.
"""

import argparse
import io
import shutil
from pathlib import Path

from app import Server
from PIL import Image

WIDTHS = {False: 1200, True: 360}  # pixels, of a window and of a phone


def main() -> None:
    """Take the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("picture", type=Path)
    parser.add_argument("--phone", action="store_true")
    parser.add_argument("--dark", action="store_true")
    options = parser.parse_args()
    from playwright.sync_api import sync_playwright

    size = {"width": WIDTHS[options.phone], "height": 740}
    with Server() as server, sync_playwright() as playwright:
        chromium = shutil.which("chromium")
        flags = ["--no-sandbox", "--disable-gpu"]
        browser = playwright.chromium.launch(executable_path=chromium, args=flags)
        scheme = "dark" if options.dark else "light"
        page = browser.new_page(viewport=size, color_scheme=scheme, is_mobile=options.phone)
        page.goto(server.url)
        page.get_by_role("button", name="Hear this example").first.click()
        page.get_by_role("heading", name="Explore").wait_for(timeout=60_000)
        page.mouse.move(0, 0)
        page.evaluate("document.activeElement.blur()")
        page.wait_for_timeout(1000)  # until the face has formed
        content = page.screenshot(full_page=True)
        browser.close()
    Image.open(io.BytesIO(content)).convert("RGB").save(options.picture, quality=85)


if __name__ == "__main__":
    main()
