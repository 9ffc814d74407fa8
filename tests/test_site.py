"""The site that `zensical build` has made, in a browser; without one, there is nothing to test."""

import re
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.wait import WebDriverWait

from tests.browser import in_a_browser, open_browser, seen_as, violations

SITE = Path(__file__).parent.parent / "site"
PAGES = sorted(str(page.relative_to(SITE).parent) for page in SITE.rglob("index.html"))
pytestmark = [
    in_a_browser,
    pytest.mark.skipif(not PAGES, reason="no site: build it with `zensical build --clean`"),
]
SEARCHES = {
    "progress bar": "/outputs/",
    "local file": "/inputs/",
    "save images": "/outputs/",
    "video": "/inputs/",
    "lambda": "/lambda/",
    "discord": "/chat-bots/",
    "cancel": "/waiting/",
    "webhook": "/fleets/",
    "price": "/api-facts/",
    "windows": "/tutorial/",
}
"""What people search for, and the page that helps them."""


class Handler(SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        """Nothing."""


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """Where the site is."""
    handler = partial(Handler, directory=str(SITE))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    with open_browser(tmp_path_factory.mktemp("profile")) as driver:
        yield driver


@pytest.mark.parametrize("query", SEARCHES)
def test_the_search_finds(browser: webdriver.Chrome, url: str, query: str) -> None:
    """The page that helps is among the first three."""
    browser.get(url)
    wait = WebDriverWait(browser, 20, 0.05)
    wait.until(lambda _: browser.find_elements(By.CLASS_NAME, "md-search__button"))
    browser.find_element(By.CLASS_NAME, "md-search__button").click()
    root = wait.until(lambda _: browser.switch_to.active_element.shadow_root)
    root.find_element(By.CSS_SELECTOR, "input").send_keys(query)

    def found() -> list[str]:
        script = "return [...arguments[0].querySelectorAll('a')].map((link) => link.pathname)"
        paths: list[str] = browser.execute_script(script, root)
        return list(dict.fromkeys(paths))[:3]

    wait.until(lambda _: SEARCHES[query] in found(), f"{query}: {found()}")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("page", PAGES)
def test_everybody_can_read_it(browser: webdriver.Chrome, url: str, page: str, scheme: str) -> None:
    """Axe-core finds nothing, in either colour scheme."""
    with seen_as(browser, scheme, 1300):
        browser.get(f"{url}/stylesheets/site.css")
        browser.execute_script("localStorage.clear()")  # the scheme that was shown before
        browser.get(f"{url}/{page}/")
        theme = {"light": "default", "dark": "slate"}[scheme]
        script = "return document.body.dataset.mdColorScheme"
        WebDriverWait(browser, 20, 0.05).until(lambda _: browser.execute_script(script) == theme)
        assert violations(browser) == []


@pytest.mark.parametrize("page", [page for page in PAGES if "reference" not in page])
def test_a_figure_stays_with_its_unit(page: str) -> None:
    """No line of a guide breaks between them."""
    html = (SITE / page / "index.html").read_text()
    text = re.sub(r"<(pre|code|script|style|title)\b.*?</\1>", "", html, flags=re.DOTALL)
    assert re.findall(r".{20}\d (?:s|ms|µs|[kM]B|%)[^\w].{10}", re.sub(r"<[^>]+>", "", text)) == []


def test_nothing_is_loaded_from_elsewhere(browser: webdriver.Chrome, url: str) -> None:
    """No font, script, picture or count of stars: the reader's browser asks nobody else."""
    for page in PAGES:
        browser.get(f"{url}/{page}/")
        script = "return performance.getEntriesByType('resource').map((entry) => entry.name)"
        loaded: list[str] = browser.execute_script(script)
        assert [each for each in loaded if not each.startswith((url, "data:", "blob:"))] == []


def test_it_fits_a_narrow_screen(browser: webdriver.Chrome, url: str) -> None:
    """No page is wider than a telephone."""
    with seen_as(browser, "light", 360):
        for page in PAGES:
            browser.get(f"{url}/{page}/")
            overflow = "return document.documentElement.scrollWidth - window.innerWidth"
            assert browser.execute_script(overflow) <= 0, page
