"""Debian's Chromium, without a screen, for the tests of pages."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service

BROWSER, DRIVER = Path("/usr/bin/chromium"), Path("/usr/bin/chromedriver")
NO_BROWSER = " and ".join(str(path) for path in (BROWSER, DRIVER) if not path.exists())
if NO_BROWSER and os.environ.get("BROWSER_TESTS") == "required":
    raise RuntimeError(f"BROWSER_TESTS=required, but {NO_BROWSER} missing")
needs_browser = pytest.mark.skipif(
    bool(NO_BROWSER), reason=f"{NO_BROWSER} missing: apt-get install chromium chromium-driver"
)


@contextmanager
def browser(profile: Path) -> Iterator[webdriver.Chrome]:
    """With a profile of its own."""
    options = webdriver.ChromeOptions()
    options.binary_location = str(BROWSER)
    for flag in ("headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-component-update"):
        options.add_argument(f"--{flag}")
    for flag in ("disable-background-networking", "disable-sync", f"user-data-dir={profile}"):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(str(DRIVER)))
    try:
        yield driver
    finally:
        driver.quit()


def open_page(driver: webdriver.Chrome, page: Path, width: int) -> int:
    """Open a page in a window, of a phone below 500 pixels. It complains of nothing and is no wider than the window.

    Returns:
        How many images it has: each is drawn, and has an alternative text.
    """
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    driver.get(page.as_uri())
    assert driver.get_log("browser") == []
    assert driver.execute_script("return innerWidth") == width
    assert driver.execute_script("return document.documentElement.scrollWidth") <= width
    images = "[...document.images].map(i => [i.alt, i.naturalWidth, i.getBoundingClientRect().width])"
    shown = driver.execute_script(f"return {images}")
    assert all(alt and natural and drawn > 100 for alt, natural, drawn in shown)
    return len(shown)
