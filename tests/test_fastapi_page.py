"""The example app, started as its reader would start it, and its page in a real browser."""

import os
import re
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any

import httpx
import pytest
from anyio.from_thread import start_blocking_portal
from fastapi.testclient import TestClient
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.wait import WebDriverWait

from luma_poll import Journal
from luma_poll.sandbox import Sandbox
from luma_poll.sandbox.server import serve_app
from tests.browser import in_a_browser, open_browser, seen_as, violations
from tests.journal.kills import Recorded

APP = Path(__file__).parent.parent / "docs/examples/fastapi_app.py"


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


@contextmanager
def running_app(
    port: int, is_silent: bool = True, /, **luma: str
) -> Iterator["subprocess.Popen[bytes]"]:
    """The example app in a process of its own, without a key; it ends without a traceback."""
    settings = {name: value for name, value in os.environ.items() if not name.startswith("LUMA_")}
    process = subprocess.Popen(
        [sys.executable, APP],
        env={**settings, **luma, "PORT": str(port)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    try:
        wait_until_it_listens(f"http://127.0.0.1:{port}", process)
        yield process
    finally:
        process.terminate()
        _, told = process.communicate(timeout=50)
    assert not is_silent or b"Traceback" not in told, told.decode()


@contextmanager
def serving(api: Recorded) -> Iterator[str]:
    """A sandbox that outlives the app; yields its address for the app."""
    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(serve_app(api, "127.0.0.1", 0)) as origin,
    ):
        yield f"{origin}/v1"


def accepted(api: Recorded) -> set[str]:
    """The ids of what was submitted."""
    return {generation_id for ids in api.accepted.values() for generation_id in ids}


@pytest.fixture
def luma(tmp_path: Path) -> dict[str, str]:
    """The settings of an app with a sandbox elsewhere, except its address."""
    files = {"LUMA_JOURNAL": str(tmp_path / "journal.db"), "LUMA_PICTURES": str(tmp_path / "all")}
    return {"LUMA_AGENTS_API_KEY": "luma-api-sandbox", **files}


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
    with open_browser(tmp_path_factory.mktemp("profile")) as driver:
        yield driver


@pytest.fixture
def page(browser: webdriver.Chrome, url: str) -> webdriver.Chrome:
    """The page, as somebody sees it who has not been there before."""
    browser.get(f"{url}/openapi.json")  # not the page: it would remember its cards again
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


def buttons(card: WebElement) -> dict[str, WebElement]:
    """What can be done with a card, in its order."""
    found = card.find_elements(By.CSS_SELECTOR, ".actions button, .actions a")
    return {text_of(each): each for each in found}


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
    assert list(buttons(card)) == ["Edit the prompt", "Copy id", "Remove"]
    buttons(card)["Edit the prompt"].click()
    prompt = page.find_element(By.ID, "prompt")
    assert prompt.get_property("value") == "a crowd sandbox:fail=content_moderated"


@in_a_browser
def test_a_failure_that_may_pass_can_be_tried_again(page: webdriver.Chrome) -> None:
    """One press submits it anew, in the same place."""
    submit(page, "a map sandbox:fail=generation_failed sandbox:duration=4")
    until_all_are(page, "failed")
    assert next(iter(buttons(cards(page)[0]))) == "Try again"
    buttons(cards(page)[0])["Try again"].click()
    assert states(page)[0] in ("submitting", "queued", "processing")
    until_all_are(page, "failed")


@in_a_browser
def test_more_at_once_than_a_browser_has_connections(page: webdriver.Chrome) -> None:
    """One stream is open for all twelve of them, and a reload in the middle loses none."""
    counting = """
        window.streams = [];
        window.EventSource = class extends EventSource {
            constructor(url) { super(url); window.streams.push(this); }
        };
    """
    added = page.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": counting})
    try:
        for _ in range(3):
            submit(page, "foxes sandbox:duration=30", count=4)
        until_all_are(page, "processing", count=12)
        page.refresh()
        until_all_are(page, "processing", count=12)
        assert page.execute_script("return window.streams.map((each) => each.readyState)") == [1]
    finally:
        page.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", added)
    assert page.title == "(12) Pictures, live"
    until_all_are(page, "completed", count=12)
    assert page.title == "Pictures, live"
    WebDriverWait(page, 10, 0.05).until(
        lambda _: all(has_a_picture(page, card) for card in cards(page))
    )
    assert page.execute_script("return window.streams.map((each) => each.readyState)") == [2]


@in_a_browser
def test_all_outputs_are_shown(page: webdriver.Chrome, tmp_path: Path) -> None:
    """Each as a picture as wide as the card, and as a file to keep."""
    submit(page, "two foxes sandbox:outputs=2 sandbox:duration=1")
    until_all_are(page, "completed")
    (card,) = cards(page)
    script = "return [...arguments[0].querySelectorAll('img')].map((img) => img.naturalWidth > 0)"
    WebDriverWait(page, 10, 0.05).until(lambda _: page.execute_script(script, card) == [True, True])
    inside = float(card.find_element(By.CLASS_NAME, "frame").rect["width"])
    shown = card.find_elements(By.CSS_SELECTOR, "img")
    assert [picture.rect["width"] for picture in shown] == [inside, inside]
    assert len({picture.get_property("src") for picture in shown}) == 2
    page.execute_cdp_cmd(
        "Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)}
    )
    key = text_of(card.find_element(By.CLASS_NAME, "key"))
    for number in (1, 2):
        buttons(card)[f"Download {number}"].click()
    saved = [tmp_path / f"{key}-{number}.png" for number in (1, 2)]
    WebDriverWait(page, 10, 0.05).until(lambda _: all(file.exists() for file in saved))


@in_a_browser
def test_a_card_knows_its_generation(page: webdriver.Chrome) -> None:
    """Its key is short, its id can be copied, and links to what is known of it."""
    submit(page, "a fox sandbox:duration=1")
    until_all_are(page, "completed")
    (card,) = cards(page)
    key = text_of(card.find_element(By.CLASS_NAME, "key"))
    assert re.fullmatch(r"order-[a-z2-9]{8}", key)
    link = card.find_element(By.CSS_SELECTOR, ".ids a")
    known = httpx.get(str(link.get_property("href"))).json()
    assert (known["key"], known["state"]) == (key, "completed")
    assert known["id"].startswith(text_of(link))
    assert "X-Amz" not in page.page_source
    permissions = ["clipboardReadWrite", "clipboardSanitizedWrite"]
    page.execute_cdp_cmd("Browser.grantPermissions", {"permissions": permissions})
    buttons(card)["Copy id"].click()
    WebDriverWait(page, 10, 0.05).until(lambda _: "Copied" in buttons(card))
    read = "navigator.clipboard.readText().then(arguments[0])"
    assert page.execute_async_script(read) == known["id"]


@in_a_browser
def test_the_keyboard_is_enough(page: webdriver.Chrome) -> None:
    """Enter submits, Tab finds what can be done with a card, and a removed one stays away."""
    for prompt in ("a fox sandbox:duration=1", "an owl sandbox:duration=1"):
        page.find_element(By.ID, "prompt").send_keys(prompt, Keys.ENTER)
    until_all_are(page, "completed", count=2)
    for left in (["a fox"], []):
        page.find_element(By.ID, "prompt").click()
        reached = page.switch_to.active_element
        for _ in range(20):
            reached.send_keys(Keys.TAB)
            reached = page.switch_to.active_element
            if reached.text == "Remove":
                break
        reached.send_keys(Keys.ENTER)
        assert [card.text.split(" sandbox")[0] for card in cards(page)] == left
        focused = page.switch_to.active_element
        assert focused.text == "Download" if left else focused.get_property("id") == "prompt"
    page.refresh()
    assert cards(page) == []


@in_a_browser
def test_everybody_can_use_it(page: webdriver.Chrome) -> None:
    """Axe-core finds nothing, in either colour scheme, on a wide screen and on a narrow one."""
    submit(page, "a slow fox sandbox:duration=500")
    submit(page, "a crowd sandbox:fail=content_moderated sandbox:duration=1")
    submit(page, "a fox sandbox:outputs=2 sandbox:duration=1")
    ended = ["completed", "failed", "processing"]
    WebDriverWait(page, 30, 0.05).until(lambda _: states(page) == ended)
    for scheme, width in product(["light", "dark"], [1200, 360]):
        with seen_as(page, scheme, width):
            assert violations(page) == []
            overflow = "return document.documentElement.scrollWidth - window.innerWidth"
            assert page.execute_script(overflow) <= 0


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
@pytest.mark.parametrize(
    "answer",
    [
        "Promise.reject(new TypeError())",
        "new Promise(() => {})",
        "real(...request).then(() => Promise.reject(new TypeError()))",
    ],
)
def test_a_lost_submission_is_sent_again(
    browser: webdriver.Chrome, luma: dict[str, str], answer: str
) -> None:
    """Lost on the way there, with the page, or on the way back: one generation comes of it."""
    api, port = Recorded(answers_after=0), free_port()
    with serving(api) as address, running_app(port, **luma, LUMA_BASE_URL=address):
        browser.get(f"http://127.0.0.1:{port}")
        browser.execute_script(
            f"const real = window.fetch; window.fetch = (...request) => {answer}"
        )
        submit(browser, "number 1 sandbox:duration=0.1")
        WebDriverWait(browser, 10, 0.05).until(lambda _: cards(browser))
        if "real" in answer:
            WebDriverWait(browser, 10, 0.05).until(lambda _: accepted(api))
        browser.refresh()
        until_all_are(browser, "completed")
    assert len(accepted(api)) == 1


@in_a_browser
def test_the_cards_survive_a_restart(browser: webdriver.Chrome, luma: dict[str, str]) -> None:
    """At SIGTERM one runs, two are being submitted, five wait: none of them is submitted twice."""
    api, port = Recorded(answers_after=0.5), free_port()
    with serving(api) as address:
        luma["LUMA_BASE_URL"] = address
        with running_app(port, **luma):
            browser.get(f"http://127.0.0.1:{port}")
            for number in range(2):
                submit(browser, f"number {number} sandbox:duration=2", count=4)
            WebDriverWait(browser, 10, 0.01).until(lambda _: len(accepted(api)) > 1)
        with Journal(luma["LUMA_JOURNAL"]) as journal:
            known = journal.entries()
        assert {entry.state for entry in known} <= {"running", "completed"}
        assert {entry.generation_id for entry in known} == accepted(api)
        assert 1 < len(known) < 8
        with running_app(port, **luma):
            until_all_are(browser, "completed", count=8)
        with Journal(luma["LUMA_JOURNAL"]) as journal:
            assert len(journal.entries("completed")) == len(accepted(api)) == 8


@in_a_browser
@pytest.mark.parametrize("was_accepted", [True, False])
def test_an_unknown_submission_is_explained_until_it_is_settled(
    browser: webdriver.Chrome, luma: dict[str, str], was_accepted: bool
) -> None:
    """A kill before the answer: it may be billed, so only a person has it submitted again."""
    api, port = Recorded(answers_after=0.5), free_port()
    luma["LUMA_AGENTS_API_KEY"] = "luma-api-that-pays"
    with serving(api) as address:
        luma["LUMA_BASE_URL"] = address
        with running_app(port, **luma) as app:
            browser.get(f"http://127.0.0.1:{port}")
            submit(browser, "number 1 sandbox:duration=0.1")
            WebDriverWait(browser, 10, 0.01).until(lambda _: accepted(api))
            app.kill()
        with running_app(port, **luma):
            until_all_are(browser, "failed")
            browser.refresh()
            until_all_are(browser, "failed")
            (card,) = cards(browser)
            said = text_of(card)
        with Journal(luma["LUMA_JOURNAL"]) as journal:
            (entry,) = journal.entries("unknown")
            (generation_id,) = accepted(api)
            if was_accepted:
                journal.resolve(entry.key, generation_id=generation_id)
            else:
                journal.resolve(entry.key, resubmit=True)
        assert "May be running" in said
        assert "Look at the usage of the account" in said
        assert f"luma-poll journal resolve {luma['LUMA_JOURNAL']} {entry.key} --id ID" in said
        assert "Try again" not in said
        with running_app(port, **luma):
            browser.refresh()
            if not was_accepted:
                until_all_are(browser, "failed")
                assert "There is no such generation" in text_of(cards(browser)[0])
                assert len(accepted(api)) == 1
                buttons(cards(browser)[0])["Try again"].click()
                WebDriverWait(browser, 10, 0.05).until(lambda _: len(accepted(api)) == 2)
            else:
                until_all_are(browser, "completed")
                assert len(accepted(api)) == 1


class Revocable(Recorded):
    """The sandbox, with an API key that can stop working."""

    is_revoked = False

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if self.is_revoked and scope["type"] == "http":
            body = b'{"detail": "API key has been revoked"}'
            await send({"type": "http.response.start", "status": 401, "headers": []})
            await send({"type": "http.response.body", "body": body})
        else:
            await super().__call__(scope, receive, send)


@in_a_browser
def test_a_key_that_stops_working_takes_nothing_away(
    browser: webdriver.Chrome, luma: dict[str, str]
) -> None:
    """What is done stays done, what runs is out of sight, and both are there again after it."""
    api, port = Revocable(answers_after=0), free_port()
    with (
        serving(api) as address,
        running_app(port, False, **luma, LUMA_BASE_URL=address),
    ):
        browser.get(f"http://127.0.0.1:{port}")
        submit(browser, "number 1 sandbox:duration=0.1")
        until_all_are(browser, "completed")
        api.is_revoked = True
        browser.refresh()
        until_all_are(browser, "completed")
        WebDriverWait(browser, 10, 0.05).until(lambda _: has_a_picture(browser, cards(browser)[0]))
        # Not even without its file.
        shutil.rmtree(luma["LUMA_PICTURES"])
        browser.refresh()
        WebDriverWait(browser, 10, 0.05).until(lambda _: "Reload" in buttons(cards(browser)[0]))
        (card,) = cards(browser)
        assert states(browser) == ["completed"]
        assert text_of(card.find_element(By.CLASS_NAME, "said")) == "Done"
        assert "The service is unavailable" in text_of(card)
        assert list(buttons(card)) == ["Reload", "Copy id", "Remove"]
        api.is_revoked = False
        submit(browser, "number 2 sandbox:duration=5")
        WebDriverWait(browser, 10, 0.05).until(lambda _: states(browser)[0] == "processing")
        api.is_revoked = True
        WebDriverWait(browser, 10, 0.05).until(lambda _: states(browser)[0] == "unseen")
        assert list(buttons(cards(browser)[0])) == ["Reload", "Copy id", "Remove"]
        with seen_as(browser, "dark", 1200):
            assert violations(browser) == []
        submit(browser, "number 3 sandbox:duration=0.1")
        WebDriverWait(browser, 10, 0.05).until(lambda _: states(browser)[0] == "failed")
        api.is_revoked = False
        buttons(cards(browser)[0])["Try again"].click()
        for card in cards(browser)[1:]:
            buttons(card)["Reload"].click()
        until_all_are(browser, "completed", count=3)
        WebDriverWait(browser, 10, 0.05).until(
            lambda _: all(has_a_picture(browser, card) for card in cards(browser))
        )
    assert len(accepted(api)) == 3


@in_a_browser
def test_what_another_journal_knows_is_not_submitted_again(
    browser: webdriver.Chrome, luma: dict[str, str]
) -> None:
    """The page remembers that there was an id, though the app does not."""
    api, port = Recorded(answers_after=0), free_port()
    luma["LUMA_AGENTS_API_KEY"] = "luma-api-that-pays"
    with serving(api) as address:
        luma["LUMA_BASE_URL"] = address
        with running_app(port, **luma):
            browser.get(f"http://127.0.0.1:{port}")
            submit(browser, "number 1 sandbox:duration=0.1")
            until_all_are(browser, "completed")
            submit(browser, "number 2")
            WebDriverWait(browser, 10, 0.05).until(  # both ids are on the page
                lambda _: len(browser.find_elements(By.CSS_SELECTOR, ".card .ids a")) == 2
            )
            assert len(accepted(api)) == 2
        journal = luma.pop("LUMA_JOURNAL")
        with running_app(port, **luma, LUMA_JOURNAL=f"{journal}2"):
            browser.refresh()
            for card in cards(browser):
                WebDriverWait(card, 10, 0.05).until(lambda card: "Reload" in buttons(card))
            assert states(browser) == ["failed", "completed"]
            for card in cards(browser):
                assert "There is no such generation" in text_of(card)
                assert "Try again" not in buttons(card)
        with running_app(port, **luma, LUMA_JOURNAL=journal):
            for card in cards(browser):
                buttons(card)["Reload"].click()
            WebDriverWait(browser, 10, 0.05).until(
                lambda _: has_a_picture(browser, cards(browser)[1])
            )
            WebDriverWait(browser, 10, 0.05).until(
                lambda _: states(browser)[0] in ("queued", "processing")
            )
    assert len(accepted(api)) == 2


@in_a_browser
def test_a_full_account_is_waited_for(browser: webdriver.Chrome, luma: dict[str, str]) -> None:
    """A card says that it waits for room, and is submitted when another one has ended."""
    api, port = Recorded(answers_after=0), free_port()
    api.sandbox = Sandbox(max_concurrent=1)
    with serving(api) as address, running_app(port, **luma, LUMA_BASE_URL=address):
        browser.get(f"http://127.0.0.1:{port}")
        submit(browser, "number 1 sandbox:duration=2", count=2)
        WebDriverWait(browser, 10, 0.05).until(lambda _: "waiting" in states(browser))
        assert "Waiting for room" in "".join(text_of(card) for card in cards(browser))
        until_all_are(browser, "completed", count=2)


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
        assert "The sandbox was restarted" in text_of(card)
        buttons(card)["Try again"].click()
        until_all_are(browser, "completed")


@in_a_browser
def test_a_prompt_is_never_markup(page: webdriver.Chrome) -> None:
    """What people type is shown as they typed it; Enter submits it."""
    evil = "<img src=x onerror=document.title='stolen'> sandbox:duration=1"
    page.find_element(By.ID, "prompt").send_keys(evil, Keys.ENTER)
    until_all_are(page, "completed")
    assert cards(page)[0].find_element(By.CLASS_NAME, "prompt").text == evil
    assert page.title == "Pictures, live"


@pytest.mark.posix
def test_it_stops_at_once_and_in_silence() -> None:
    """Ctrl-C ends the streams that are open, as streams end."""
    with running_app(port := free_port()) as process, httpx.Client(timeout=20) as http:
        url = f"http://127.0.0.1:{port}"
        submitted = http.put(f"{url}/orders/1", json={"prompt": "x sandbox:duration=500"})
        with http.stream("GET", submitted.json()["events"]) as stream:
            lines = stream.iter_lines()
            assert next(lines) == "event: order"
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
    key: str, base_url: str | None, mode: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Only Luma's own address is called Luma's, and only the sandbox free."""
    monkeypatch.setenv("LUMA_JOURNAL", str(tmp_path / "journal.db"))
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
        answer = httpx.put(f"{url}/orders/1", json=prompt, headers=headers)
        assert answer.status_code == 400
    assert httpx.get(url, headers={"Host": "localhost:8000"}).status_code == 200


def test_the_app_answers_without_a_browser(url: str) -> None:
    """Where no browser is installed, at least this much is known of it."""
    assert 'data-mode="sandbox"' in httpx.get(url).text
    prompt = {"prompt": "a fox sandbox:duration=2"}
    for _ in range(2):
        submitted = httpx.put(f"{url}/orders/order-17", json=prompt)
        assert submitted.status_code == 202
        events = httpx.get(submitted.json()["events"], timeout=20).text
        assert events.count("event: order") >= 1
        assert '"state":"completed"' in events
    for blank in (" ", "\x1c", ""):
        answer = httpx.put(f"{url}/orders/order-18", json={"prompt": blank})
        assert answer.status_code == 422
    unknown = httpx.get(f"{url}/events?key=order-18").text
    assert '"state":"missing"' in unknown
    assert httpx.get(f"{url}/orders/order-18").status_code == 404
    known = httpx.get(f"{url}/orders/order-17").json()
    (picture,) = known["pictures"]
    file = httpx.get(f"{url}{picture}")
    assert file.headers["Content-Type"] == "image/png"
    assert file.content.startswith(b"\x89PNG")
    for other in (known["id"].replace(known["id"][0], "f" if known["id"][0] != "f" else "0"), ".."):
        assert httpx.get(f"{url}/pictures/{other}/1.png").status_code in (404, 422)


def test_a_key_belongs_to_one_prompt(url: str) -> None:
    """Another prompt under it is not submitted."""
    for prompt in ("a fox sandbox:duration=1", "an owl"):
        submitted = httpx.put(f"{url}/orders/order-19", json={"prompt": prompt})
        events = httpx.get(submitted.json()["events"], timeout=20).text
        assert '"state":"completed"' in events
