"""Debian's Chromium, driven by Playwright: a page of it fails a test that leaves an error in the
console, or that fetches anything from elsewhere. What is looked at is kept as pictures in
``build/screenshots``.
"""

import functools
import shutil
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest

SCREENSHOTS = Path(__file__).parents[1] / "build" / "screenshots"
# of a desk, of a phone
WIDE, NARROW = {"width": 1200, "height": 900}, {"width": 390, "height": 800}
HERE = {None, "127.0.0.1"}  # hosts: of files and data, and of this machine


@functools.cache
def chromium():
    return (
        shutil.which("chromium")
        or shutil.which("chromium-browser")
        or shutil.which("google-chrome")
    )


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="needs Playwright")
    if chromium() is None:
        pytest.skip("needs Chromium")
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(
            executable_path=chromium(), args=["--no-sandbox", "--disable-gpu"]
        )
        yield opened
        opened.close()


@contextmanager
def visiting(browser):
    """Gives address, options → its page. At the end nothing was wrong with any of them."""
    pages, wrong = [], []

    def note(message):
        if message.type == "error":
            wrong.append(message.text)

    def check(request):
        if urlsplit(request.url).hostname not in HERE and not request.url.startswith("blob:"):
            wrong.append(f"fetched {request.url}")

    def open_page(address, **options):
        page = browser.new_page(**({"viewport": WIDE, "reduced_motion": "reduce"} | options))
        pages.append(page)
        page.set_default_timeout(20_000)
        page.on("console", note)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", check)
        page.goto(address)
        return page

    yield open_page
    for page in pages:
        page.close()
    assert not wrong


@pytest.fixture
def visit(browser):
    """See :func:`visiting`."""
    with visiting(browser) as open_page:
        yield open_page


def overflow(page):
    """Pixels by which a page is wider than its window."""
    return page.evaluate("Math.max(0, document.documentElement.scrollWidth - innerWidth)")


def keep(page, name, whole=True):
    """Write a picture of a page, or of its window, to ``build/screenshots/NAME-WIDTH.png``."""
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"{name}-{page.viewport_size['width']}.png", full_page=whole)
