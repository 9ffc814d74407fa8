"""The example app, started as its reader would start it, and its page in a real browser."""

import os
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from fastapi.testclient import TestClient
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


@contextmanager
def running_app(port: int) -> Iterator["subprocess.Popen[bytes]"]:
    """The example app in a process of its own, without a key; it ends without a traceback."""
    settings = {name: value for name, value in os.environ.items() if not name.startswith("LUMA_")}
    process = subprocess.Popen(
        [sys.executable, APP],
        env={**settings, "PORT": str(port)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    try:
        wait_until_it_listens(f"http://127.0.0.1:{port}", process)
        yield process
    finally:
        process.terminate()
        _, told = process.communicate(timeout=20)
    assert b"Traceback" not in told, told.decode()


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """Where the example app is."""
    port = free_port()
    with running_app(port):
        yield f"http://127.0.0.1:{port}"


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


def text_of(element: WebElement) -> str:
    """Also while it appears; Selenium's `text` is of what can be seen."""
    return str(element.get_property("textContent"))


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
    assert "The content was rejected by moderation" in card.text
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
def test_more_than_there_are_streams_tell_their_states(page: webdriver.Chrome) -> None:
    """They take turns: none is shown as queued for long while it is being made."""
    for _ in range(2):
        submit(page, "foxes sandbox:duration=100", count=4)
    until_all_are(page, "processing", count=8)


@in_a_browser
def test_all_outputs_are_shown(page: webdriver.Chrome) -> None:
    """Each as a picture and as a link."""
    submit(page, "two foxes sandbox:outputs=2 sandbox:duration=1")
    until_all_are(page, "completed")
    (card,) = cards(page)
    script = "return [...arguments[0].querySelectorAll('img')].map((img) => img.naturalWidth > 0)"
    WebDriverWait(page, 10, 0.05).until(lambda _: page.execute_script(script, card) == [True, True])
    links = card.find_elements(By.CSS_SELECTOR, ".actions a")
    assert [text_of(link) for link in links] == ["Open 1", "Open 2"]
    assert links[0].get_property("href") != links[1].get_property("href")


@in_a_browser
def test_only_addresses_of_the_web_become_links(page: webdriver.Chrome) -> None:
    """An output whose URL is a script is neither shown nor offered."""
    page.execute_script(
        """
        window.EventSource = class extends EventTarget {
            constructor() {
                super();
                const urls = ["javascript:document.title='stolen'", "data:text/html,x", "nonsense"];
                const data = JSON.stringify({state: "completed", urls});
                setTimeout(() => this.dispatchEvent(new MessageEvent("state", {data})));
            }
            close() {}
        };
        """
    )
    submit(page, "a fox")
    until_all_are(page, "failed")
    (card,) = cards(page)
    assert "No picture" in text_of(card)
    assert card.find_elements(By.CSS_SELECTOR, "a, img") == []


def seconds(card: WebElement) -> int:
    return int(text_of(card.find_element(By.CLASS_NAME, "time")).removesuffix(" s"))


@in_a_browser
def test_a_reload_does_not_turn_the_clock_back(page: webdriver.Chrome) -> None:
    """Nor does the clock of an ended one go on."""
    submit(page, "a fox sandbox:duration=4")
    until_all_are(page, "completed")
    took = seconds(cards(page)[0])
    submit(page, "a slow fox sandbox:duration=100")
    WebDriverWait(page, 10, 0.05).until(lambda _: seconds(cards(page)[0]) >= 3)
    page.refresh()
    assert seconds(cards(page)[0]) >= 3
    WebDriverWait(page, 10, 0.05).until(lambda _: states(page)[1] == "completed")
    assert seconds(cards(page)[1]) == took


@in_a_browser
@pytest.mark.parametrize("answer", ["Promise.reject(new TypeError())", "new Promise(() => {})"])
def test_a_lost_submission_outlives_a_reload(page: webdriver.Chrome, answer: str) -> None:
    """Lost with the connection or with the page: it may have been paid for, and that is said."""
    page.execute_script(f"window.fetch = () => {answer}")
    submit(page, "a dear fox")
    WebDriverWait(page, 10, 0.05).until(lambda _: cards(page))
    page.refresh()
    (card,) = cards(page)
    assert card.get_dom_attribute("data-state") == "failed"
    assert "a dear fox" in text_of(card)
    assert "May be running" in text_of(card)
    assert "Look for it before you submit it again" in text_of(card)
    assert "Try again" not in text_of(card)


@in_a_browser
def test_what_a_restart_has_forgotten_can_be_submitted_again(browser: webdriver.Chrome) -> None:
    """A sandbox has no memory: nobody is sent to check an id that was right."""
    port = free_port()
    with running_app(port):
        browser.get(f"http://127.0.0.1:{port}")
        submit(browser, "a fox sandbox:duration=1")
        until_all_are(browser, "completed")
    with running_app(port):
        browser.get(f"http://127.0.0.1:{port}")
        until_all_are(browser, "failed")
        (card,) = cards(browser)
        assert "The sandbox has been started anew" in text_of(card)
        card.find_element(By.CSS_SELECTOR, ".actions button").click()
        until_all_are(browser, "completed")


@in_a_browser
def test_a_prompt_is_never_markup(page: webdriver.Chrome) -> None:
    """What people type is shown as they typed it; Enter submits it."""
    evil = "<img src=x onerror=document.title='stolen'> sandbox:duration=1"
    page.find_element(By.ID, "prompt").send_keys(evil, Keys.ENTER)
    until_all_are(page, "completed")
    assert cards(page)[0].find_element(By.CLASS_NAME, "prompt").text == evil
    assert page.title == "Pictures, live"


def test_it_stops_at_once_and_in_silence() -> None:
    """Ctrl-C ends the streams that are open, as streams end."""
    with running_app(port := free_port()) as process, httpx.Client(timeout=20) as http:
        url = f"http://127.0.0.1:{port}"
        submitted = http.post(f"{url}/generations", json={"prompt": "x sandbox:duration=500"})
        with http.stream("GET", f"{url}/generations/{submitted.json()['id']}/events") as stream:
            lines = stream.iter_lines()
            assert next(lines) == "event: state"
            process.send_signal(signal.SIGINT)
            assert [line for line in lines if line.startswith("event:")] == []
        assert process.wait(timeout=5) == 0


@pytest.mark.parametrize(
    ("key", "base_url", "mode"),
    [
        ("luma-api-sandbox", "http://127.0.0.1:8787/v1", "sandbox"),
        ("luma-api-1", None, "live"),
        ("luma-api-1", "https://agents.lumalabs.ai/v1", "live"),
        ("luma-api-1", "https://lumalabs.ai.example.com/v1", "other"),
        ("luma-api-1", "http://127.0.0.1:8787/v1", "other"),
    ],
)
def test_the_page_says_who_bills(
    key: str, base_url: str | None, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only Luma's own address is called Luma's, and only the sandbox free."""
    monkeypatch.setenv("LUMA_AGENTS_API_KEY", key)
    if base_url is not None:
        monkeypatch.setenv("LUMA_BASE_URL", base_url)
    with TestClient(runpy.run_path(str(APP))["app"], base_url="http://localhost") as http:
        page = http.get("/").text
    assert f'data-mode="{mode}"' in page
    assert '"?"' not in page


def test_only_this_machine_is_listened_to(url: str) -> None:
    """A name that leads here by somebody else's doing gets nothing, and can submit nothing."""
    for host in ("evil.example", "127.0.0.1.evil.example"):
        headers = {"Host": host}
        assert httpx.get(url, headers=headers).status_code == 400
        prompt = {"prompt": "a fox"}
        answer = httpx.post(f"{url}/generations", json=prompt, headers=headers)
        assert answer.status_code == 400
    assert httpx.get(url, headers={"Host": "localhost:8000"}).status_code == 200


def test_the_app_answers_without_a_browser(url: str) -> None:
    """Where no browser is installed, at least this much is known of it."""
    assert 'data-mode="sandbox"' in httpx.get(url).text
    submitted = httpx.post(f"{url}/generations", json={"prompt": "a fox sandbox:duration=2"})
    assert submitted.status_code == 202
    events = httpx.get(f"{url}/generations/{submitted.json()['id']}/events", timeout=20).text
    assert events.count("event: state") >= 2
    assert '"state":"completed"' in events
    for blank in (" ", "\x1c", ""):
        assert httpx.post(f"{url}/generations", json={"prompt": blank}).status_code == 422
    unknown = httpx.get(f"{url}/generations/182bd5e5-6e1a-4fe4-a799-aa6d9a6ab26e/events").text
    assert "event: problem" in unknown
    assert '"code":"not_found"' in unknown
