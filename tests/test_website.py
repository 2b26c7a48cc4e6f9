"""The documentation's website: it is built without a warning, and a browser finds every page, link and picture."""

import os
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlsplit

import pytest
from playwright.async_api import async_playwright, expect
from test_docs import DOCUMENTS
from test_page import CHROMIUM, FLAGS

ROOT = Path(__file__).resolve().parents[1]
PICTURES = {"README": "homeassistant.png", "docs/homeassistant": "homeassistant.png", "docs/health": "status.png"}

pytestmark = pytest.mark.xdist_group("website")  # so that it is built once


class Links(HTMLParser):
    """What a page links to and shows, and its anchors."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.targets, self.pictures, self.anchors = set[str](), set[str](), set[str]()
        self.feed(page.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value for name, value in attrs if value}
        self.targets |= {found["href"]} if tag == "a" and "href" in found else set()
        self.pictures |= {found["src"]} if tag == "img" and "src" in found else set()
        self.anchors |= {found["id"]} if "id" in found else set()


@pytest.fixture(scope="module")
def website(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("website")
    program = Path(sys.executable).with_name("sphinx-build")
    command = (program, "-q", "-W", "--keep-going", "-d", folder / "cache", "-c", "docs/site", ".", folder / "html")
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    return folder / "html"


def test_every_document_is_a_page_and_every_link_leads_somewhere(website: Path) -> None:
    pages = {path: website / path.relative_to(ROOT).with_suffix(".html") for path in DOCUMENTS}
    assert [str(path) for path, page in pages.items() if not page.is_file()] == []
    found = {page: Links(page) for page in website.rglob("*.html")}
    broken = []
    for page, links in found.items():
        for link in links.targets | links.pictures:
            if not urlsplit(link).scheme and link != "#":
                target, anchor = urldefrag(unquote(link))
                there = (page.parent / target).resolve() if target else page
                known = anchor in found[there].anchors if anchor and there in found else there.exists()
                broken += [] if known else [f"{page.relative_to(website)}: {link}"]
    assert len(found) > len(DOCUMENTS)
    assert broken == []


def test_the_pages_show_their_pictures(website: Path) -> None:
    for page, picture in PICTURES.items():
        shown = {Path(source).name for source in Links(website / f"{page}.html").pictures}
        assert picture in shown, page


@pytest.mark.skipif(
    CHROMIUM is None and not os.environ.get("CI"), reason="Chromium is not installed: apt-get install chromium"
)
async def test_the_search_finds_a_setting(website: Path) -> None:
    assert shutil.which("chromium"), "chromium is not installed: apt-get install chromium"
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = await browser.new_page()
        await page.goto((website / "index.html").as_uri())
        await page.locator(".sidebar-search").first.fill("netting")
        await page.keyboard.press("Enter")
        found = page.locator("#search-results li > a")
        for title in ("Settings", "Numbers that can be trusted"):  # results come one after another
            await expect(found.get_by_text(title, exact=True).first).to_be_visible()
        await browser.close()
