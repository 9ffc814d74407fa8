"""The example app, started as its reader would start it, and its page in a real browser."""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.wait import WebDriverWait

APP = Path(__file__).parent.parent / "docs/examples/fastapi_app.py"
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")
DRIVER = shutil.which("chromedriver")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--disable-dev-shm-usage", "--window-size=1200,1000"),
)
in_a_browser = pytest.mark.skipif(
    not (BROWSER and DRIVER),
    reason="no browser: install chromium and chromedriver (Debian: chromium-driver)",
)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """The example app in a process of its own, without a key."""
    origin = f"http://127.0.0.1:{(port := free_port())}"
    settings = {name: value for name, value in os.environ.items() if not name.startswith("LUMA_")}
    process = subprocess.Popen(
        [sys.executable, APP],
        env={**settings, "PORT": str(port)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    try:
        wait_until_it_listens(origin, process)
        yield origin
    finally:
        process.terminate()
        _, told = process.communicate(timeout=20)
    assert b"Traceback" not in told, told.decode()


def wait_until_it_listens(origin: str, process: "subprocess.Popen[bytes]") -> None:
    for _ in range(300):
        assert process.poll() is None, "the app has ended"
        try:
            httpx.get(origin)
        except httpx.ConnectError:
            time.sleep(0.1)
        else:
            return
    pytest.fail("the app does not listen")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    """A fresh Chromium, with a profile of its own."""
    options = webdriver.ChromeOptions()
    options.binary_location = str(BROWSER)
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    driver = webdriver.Chrome(options, webdriver.ChromeService(str(DRIVER)))
    yield driver
    driver.quit()


@pytest.fixture
def page(browser: webdriver.Chrome, url: str) -> webdriver.Chrome:
    """The page, as somebody sees it who has not been there before."""
    browser.get(url)
    browser.execute_script("sessionStorage.clear()")
    browser.get(url)
    return browser


def submit(page: webdriver.Chrome, prompt: str, *, count: int = 1) -> None:
    page.find_element(By.CSS_SELECTOR, f"#count option[value='{count}']").click()
    page.find_element(By.ID, "prompt").send_keys(prompt)
    page.find_element(By.CSS_SELECTOR, "button[type=submit]").click()


def cards(page: webdriver.Chrome) -> list[WebElement]:
    return page.find_elements(By.CSS_SELECTOR, "#cards .card")


def states(page: webdriver.Chrome) -> list[str | None]:
    return [card.get_dom_attribute("data-state") for card in cards(page)]


def until_all_are(page: webdriver.Chrome, state: str, *, count: int = 1) -> None:
    WebDriverWait(page, 30, 0.05).until(lambda _: states(page) == [state] * count)


def has_a_picture(page: webdriver.Chrome, card: WebElement) -> bool:
    script = "return arguments[0].querySelector('img')?.naturalWidth > 0"
    return bool(page.execute_script(script, card))


@in_a_browser
def test_a_picture_comes_with_its_states_on_the_way(page: webdriver.Chrome) -> None:
    """Type, submit, watch it being made, see it."""
    page.execute_script(
        """
        window.seen = [];
        new MutationObserver(() => {
            const said = document.querySelector(".card .said")?.textContent;
            if (said && said !== window.seen.at(-1)) window.seen.push(said);
        }).observe(document.querySelector("#cards"), {childList: true, subtree: true});
        """
    )
    submit(page, "a red fox sandbox:duration=10")
    until_all_are(page, "completed")
    assert page.execute_script("return window.seen") == [
        "Submitting",
        "Queued",
        "In the making",
        "Done",
    ]
    WebDriverWait(page, 10, 0.05).until(lambda _: has_a_picture(page, cards(page)[0]))
    assert "nothing is billed" in page.find_element(By.ID, "mode").text


@in_a_browser
def test_a_moderated_prompt_is_explained(page: webdriver.Chrome) -> None:
    """The reason is told; to try the same again is not offered, to change the prompt is."""
    submit(page, "a crowd sandbox:fail=content_moderated")
    until_all_are(page, "failed")
    (card,) = cards(page)
    assert "The content was refused by the moderation" in card.text
    assert "flagged by our content moderation system" in card.text
    (edit,) = card.find_elements(By.CSS_SELECTOR, ".actions button")
    edit.click()
    prompt = page.find_element(By.ID, "prompt")
    assert prompt.get_property("value") == "a crowd sandbox:fail=content_moderated"


@in_a_browser
def test_a_failure_that_may_pass_can_be_tried_again(page: webdriver.Chrome) -> None:
    """One press submits it anew, in the same place."""
    submit(page, "a map sandbox:fail=generation_failed sandbox:duration=4")
    until_all_are(page, "failed")
    again, _ = cards(page)[0].find_elements(By.CSS_SELECTOR, ".actions button")
    assert again.text == "Try again"
    again.click()
    assert states(page)[0] in ("submitting", "queued", "processing")
    until_all_are(page, "failed")


@in_a_browser
def test_more_at_once_than_a_browser_has_connections(page: webdriver.Chrome) -> None:
    """Eight of them are all seen to their end, and a reload in the middle loses none."""
    for _ in range(2):
        submit(page, "foxes sandbox:duration=8", count=4)
    WebDriverWait(page, 10, 0.05).until(lambda _: "processing" in states(page))
    page.refresh()
    until_all_are(page, "completed", count=8)
    WebDriverWait(page, 10, 0.05).until(
        lambda _: all(has_a_picture(page, card) for card in cards(page))
    )


@in_a_browser
def test_a_prompt_is_never_markup(page: webdriver.Chrome) -> None:
    """What people type is shown as they typed it; Enter submits it."""
    evil = "<img src=x onerror=document.title='stolen'> sandbox:duration=1"
    page.find_element(By.ID, "prompt").send_keys(evil, Keys.ENTER)
    until_all_are(page, "completed")
    assert cards(page)[0].find_element(By.CLASS_NAME, "prompt").text == evil
    assert page.title == "Pictures, live"


def test_the_app_answers_without_a_browser(url: str) -> None:
    """Where no browser is installed, at least this much is known of it."""
    assert 'data-mode="sandbox"' in httpx.get(url).text
    submitted = httpx.post(f"{url}/generations", json={"prompt": "a fox sandbox:duration=2"})
    assert submitted.status_code == 202
    events = httpx.get(f"{url}/generations/{submitted.json()['id']}/events", timeout=20).text
    assert events.count("event: state") >= 2
    assert '"state":"completed"' in events
    assert httpx.post(f"{url}/generations", json={"prompt": " "}).status_code == 422
    unknown = httpx.get(f"{url}/generations/182bd5e5-6e1a-4fe4-a799-aa6d9a6ab26e/events").text
    assert "event: problem" in unknown
    assert '"code":"not_found"' in unknown
