"""Axe-core on the page in a browser: it finds what not everybody can read or use."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from typing import Any

from selenium import webdriver

AXE = (files("selenium_axe_python") / "axe-core" / "axe.min.js").read_text()


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
