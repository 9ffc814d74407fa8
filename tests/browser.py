"""A browser for tests, and what axe-core finds on its pages."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")
DRIVER = shutil.which("chromedriver")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--disable-dev-shm-usage", "--window-size=1200,1000", "--hide-scrollbars"),
)
in_a_browser = pytest.mark.skipif(
    not (BROWSER and DRIVER),
    reason="no browser: install chromium and chromedriver (Debian: chromium-driver)",
)
AXE = (files("selenium_axe_python") / "axe-core" / "axe.min.js").read_text()


@contextmanager
def open_browser(profile: Path | str) -> Iterator[webdriver.Chrome]:
    """A fresh Chromium, with a profile of its own."""
    options = webdriver.ChromeOptions()
    options.binary_location = str(BROWSER)
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    driver = webdriver.Chrome(options, webdriver.ChromeService(str(DRIVER)))
    try:
        yield driver
    finally:
        driver.quit()


def violations(browser: webdriver.Chrome) -> list[str]:
    """What axe-core finds on the page, by rule and element."""
    browser.execute_script(AXE)
    found: dict[str, Any] = browser.execute_async_script(
        "axe.run({resultTypes: ['violations']}).then(arguments[arguments.length - 1])"
    )
    assert found["passes"], "it has looked"
    return [
        f"{rule['id']}: {node['target'][0]}: {node['failureSummary']}"
        for rule in found["violations"]
        for node in rule["nodes"]
    ]


@contextmanager
def seen_as(browser: webdriver.Chrome, scheme: str, width: int) -> Iterator[None]:
    """Show pages in this colour scheme ("light" or "dark") and width, and at rest."""
    features = [
        {"name": "prefers-color-scheme", "value": scheme},
        {"name": "prefers-reduced-motion", "value": "reduce"},
    ]
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        yield
    finally:
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
