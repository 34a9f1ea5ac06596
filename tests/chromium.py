"""Chromium for tests of pages, and what these tests ask it."""

import re
import shutil

import pytest


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """A headless Chromium that collects the messages of the console."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs requirements-dev.txt")
    program = shutil.which("chromium") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if program is None or driver is None:
        pytest.skip("needs Chromium: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    profile = tmp_path_factory.mktemp("profile")
    offline = ("quic", "background-networking", "component-update", "sync")
    for option in ("headless=new", "no-sandbox", "no-first-run", f"user-data-dir={profile}"):
        options.add_argument(f"--{option}")
    for feature in ("gpu", *offline):
        options.add_argument(f"--disable-{feature}")
    chrome = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield chrome
    chrome.quit()


def open_file(browser, file, width, scheme="light", motion="no-preference"):
    """Open a file in a window of a width, with the user's preferences. Return the browser."""
    metrics = {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": width < 500}
    features = {"prefers-color-scheme": scheme, "prefers-reduced-motion": motion}
    media = [{"name": name, "value": value} for name, value in features.items()]
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": media})
    browser.get("about:blank")  # a left-over hash would keep the page from loading
    browser.get(file.as_uri())
    return browser


def contrast(one, other):
    """Return the contrast of two CSS colours by WCAG 2."""

    def luminance(colour):
        channels = [float(part) / 255 for part in re.findall(r"[\d.]+", colour)[:3]]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)
