"""The web page in a real browser: a clip from a sentence, a soundtrack, a cancelled job, the history after a reload.

``SYNCFLOW_SCREENSHOTS=FOLDER`` keeps pictures of the page at two widths in both themes.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (BROWSER and DRIVER), reason="needs Chromium and chromedriver"),
]
webdriver = pytest.importorskip("selenium.webdriver")
WIDTHS = {"desktop": (1280, 900), "phone": (390, 844)}


@pytest.fixture(scope="module")
def browser() -> Iterator[webdriver.Chrome]:
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--hide-scrollbars"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    made = webdriver.Chrome(options=options, service=Service(DRIVER))
    made.set_window_size(*WIDTHS["desktop"])
    yield made
    made.quit()


class Page:
    def __init__(self, browser, url: str) -> None:
        self.browser, self.url = browser, url

    def open(self, fragment: str = "") -> None:
        self.browser.get("about:blank")
        self.browser.get(self.url + "/" + fragment)
        self.wait(lambda: self.text("#model") == "syncflow-tiny" and self.find("#generate").is_enabled())

    def find(self, selector: str):
        return self.browser.find_element("css selector", selector)

    def all(self, selector: str) -> list:
        return self.browser.find_elements("css selector", selector)

    def text(self, selector: str) -> str:
        return self.find(selector).text

    def wait(self, condition, seconds: float = 180) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, self.browser.get_log("browser")
            time.sleep(0.05)

    def slide(self, name: str, value: float) -> None:
        script = "arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event('input'))"
        self.browser.execute_script(script, self.find(f"#{name}"), value)

    def keep(self, name: str) -> None:
        folder = os.environ.get("SYNCFLOW_SCREENSHOTS")
        if not folder:
            return
        for width, size in WIDTHS.items():
            for theme in ("light", "dark"):
                self.browser.execute_cdp_cmd(
                    "Emulation.setDeviceMetricsOverride",
                    {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": width == "phone"},
                )
                feature = {"name": "prefers-color-scheme", "value": theme}
                self.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
                time.sleep(0.5)
                height = self.browser.execute_script("return document.documentElement.scrollHeight")
                metrics = {"width": size[0], "height": max(height, size[1]), "deviceScaleFactor": 1, "mobile": False}
                self.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
                time.sleep(0.3)
                self.browser.save_screenshot(str(Path(folder) / f"{name}-{width}-{theme}.png"))
        self.browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})

    def overflow(self) -> int:
        return self.browser.execute_script("return document.documentElement.scrollWidth - window.innerWidth")


@pytest.fixture
def page(browser, live_url) -> Page:
    made = Page(browser, live_url)
    made.open()
    return made


def test_a_clip_from_a_sentence(page):
    from selenium.webdriver.common.keys import Keys

    page.keep("empty")
    page.slide("num_inference_steps", 8)
    page.slide("seconds", 1)
    page.find("#seed").send_keys("7")
    page.find("#prompt").send_keys("a large red rubber ball bounces on a wooden floor", Keys.CONTROL, Keys.ENTER)
    page.wait(lambda: page.find("#working").is_displayed() or page.find("#result").is_displayed())
    page.wait(lambda: page.all("#players video"))
    assert "seed 7" in page.text("#result-facts") and "8 steps" in page.text("#result-facts")
    duration = "return arguments[0].readyState > 0 && arguments[0].duration"
    page.wait(lambda: page.browser.execute_script(duration, page.find("#players video")))
    assert abs(page.browser.execute_script(duration, page.find("#players video")) - 1) < 0.1
    timeline = page.find(".timeline")
    timeline.send_keys(Keys.END)
    page.wait(lambda: float(timeline.get_attribute("aria-valuenow") or 0) > 0.9)
    page.keep("result")
    page.find("#link").click()
    fragment = page.browser.execute_script("return location.hash")
    page.open(fragment)
    page.wait(lambda: page.find("#seed").get_attribute("value") == "7")
    assert page.find("#prompt").get_attribute("value") == "a large red rubber ball bounces on a wooden floor"
    assert page.find("#num_inference_steps").get_attribute("value") == "8"


def test_a_soundtrack_for_a_video_in_takes(page, clip_file):
    page.find("#file").send_keys(str(clip_file))
    page.wait(lambda: page.find("#task").get_attribute("value") == "video-to-audio")
    page.slide("num_inference_steps", 2)
    page.slide("takes", 2)
    page.find("#generate").click()
    page.wait(lambda: page.text("#result-facts").startswith("Soundtrack for a video"))
    page.wait(lambda: len(page.all("#players .player")) == 2)
    assert "audio seed" in page.text(".player h3")
    page.keep("takes")


def test_a_job_is_followed_and_cancelled(page):
    before = len(page.all("#history li"))
    page.find("#prompt").send_keys("a ball")
    page.slide("num_inference_steps", 100)
    page.slide("seconds", 20)
    page.find("#generate").click()
    page.wait(lambda: "%" in page.text("#status"))
    painted = "return document.getElementById('preview').getContext('2d').getImageData(0, 0, 8, 8).data.some(Boolean)"
    page.wait(lambda: page.browser.execute_script(painted))
    page.keep("working")
    page.find("#cancel").click()
    page.wait(lambda: "cancelled" in page.text("#toast"))
    page.wait(lambda: len(page.all("#history li")) == before)


def test_the_history_is_there_after_a_reload(page):
    page.wait(lambda: len(page.all("#history li")) == 2)
    page.browser.refresh()
    page.wait(lambda: len(page.all("#history li")) == 2)
    page.all("#history button")[-1].click()
    page.wait(lambda: page.text("#result-prompt").startswith("a large red"))


def test_a_wrong_field_is_shown_at_its_place(page):
    page.find("#prompt").send_keys("x")
    page.find("summary").click()
    page.find("#size").send_keys("30x30")
    page.find("#generate").click()
    page.wait(lambda: page.all('[data-field="size"]:not([hidden])'))
    assert "multiple of 16" in page.text('[data-field="size"]')
    assert page.browser.switch_to.active_element.get_attribute("id") == "size"


def test_it_fits_a_phone_and_asks_nobody_else(page):
    page.browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": 360, "height": 740, "deviceScaleFactor": 1, "mobile": False}
    )
    page.wait(lambda: page.all("#players video"))
    assert page.overflow() <= 0
    page.browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    messages = [json.loads(entry["message"])["message"] for entry in page.browser.get_log("performance")]
    asked = {m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"}
    assert asked and all(one.startswith((page.url, "data:", "blob:", "about:")) for one in asked)
    faults = [entry for entry in page.browser.get_log("browser") if entry["level"] == "SEVERE"]
    assert [entry for entry in faults if "422" not in entry["message"]] == []


def test_every_control_has_a_name(page):
    script = """return [...document.querySelectorAll('input, select, textarea, button, canvas, progress')]
      .filter((each) => each.checkVisibility() && !each.labels?.length && !each.getAttribute('aria-label')
        && !each.textContent.trim()).map((each) => each.id || each.outerHTML)"""
    assert page.browser.execute_script(script) == []
