"""A headless Chrome that reaches one host only, and the PressClub's newsfeed as it grows in it."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from tempfile import TemporaryDirectory
from urllib.parse import urlsplit

from selenium import webdriver
from selenium.common.exceptions import TimeoutException
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.support.ui import WebDriverWait
from webdriver_manager.chrome import ChromeDriverManager
from webdriver_manager.core.os_manager import ChromeType

from bmwqa.pressclub import ARTICLE_LINKS, USER_AGENT

# the consent drawer hides in a shadow root, where an ordinary search cannot see it
MORE = """for (const host of document.querySelectorAll('*'))
    host.shadowRoot?.querySelector('button.reject-button, button.accept-button')?.click();
    window.scrollTo(0, 0); document.querySelector('#lazy-load-button')?.click();
    window.scrollTo(0, document.body.scrollHeight)"""
LINKS = "return [...document.querySelectorAll(arguments[0])].map(link => link.getAttribute('href'))"
SWITCHES = (  # the site has another page for narrow windows; nothing answers at the proxy
    "--headless=new --no-first-run --blink-settings=imagesEnabled=false --window-size=1600,1200 "
    "--disable-background-networking --disable-component-update --disable-dev-shm-usage "
    "--accept-lang=en-US --proxy-server=http://127.0.0.1:9"
).split()


def major_version(program: str) -> str:
    """The 131 of "Chromium 131.0.6778.85", which is what `program --version` prints."""
    printed = subprocess.run([program, "--version"], capture_output=True, text=True).stdout
    return "".join(re.findall(r"(\d+)\.\d", printed)[:1])


def browser_and_driver() -> tuple[str, str]:
    """Paths of a browser ("": Selenium looks for it) and of a chromedriver that fits it."""
    names = ("google-chrome", "chromium", "chromium-browser", "chrome")
    browsers = [path for name in names if (path := shutil.which(name))]
    driver = shutil.which("chromedriver")
    for browser in browsers:
        if driver and major_version(browser) == major_version(driver):
            return browser, driver
    browser = browsers[0] if browsers else ""
    kind = ChromeType.CHROMIUM if "chromium" in browser else ChromeType.GOOGLE
    return browser, ChromeDriverManager(chrome_type=kind).install()


@contextmanager
def open_chrome(host: str, page_seconds: float) -> Iterator[webdriver.Chrome]:
    """A headless Chrome that reaches `host` alone; in the end it quits and its profile goes."""
    options = webdriver.ChromeOptions()
    options.binary_location, driver = browser_and_driver()
    options.page_load_strategy = "eager"  # the text is enough, the pictures never come
    options.timeouts = {"pageLoad": 1000 * max(30, page_seconds)}  # of the start too, it may hang
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})  # for count_requests
    for switch in [*SWITCHES, f"--proxy-bypass-list=<-loopback>;{host}"]:
        options.add_argument(switch)
    options.add_argument(f"--user-agent={USER_AGENT}")
    if sys.platform != "win32" and os.geteuid() == 0:
        options.add_argument("--no-sandbox")  # root, as in many containers, cannot have the sandbox
    with TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        options.add_argument(f"--user-data-dir={profile}")
        socket.setdefaulttimeout(max(60, 2 * page_seconds))  # or Selenium may wait for ever
        try:
            chrome = webdriver.Chrome(options=options, service=Service(driver))
        finally:
            socket.setdefaulttimeout(None)
        try:
            chrome.set_page_load_timeout(page_seconds)
            yield chrome
        finally:
            with suppress(Exception):  # a dead one cannot quit
                chrome.quit()


def newsfeed_links(chrome: webdriver.Chrome) -> list[str]:
    """The addresses in the newsfeed as the page has them now."""
    return chrome.execute_script(LINKS, ARTICLE_LINKS)


def load_more(chrome: webdriver.Chrome, page_seconds: float) -> bool:
    """Whether the newsfeed has grown, after up to three tries with the button and the scroll."""
    before = len(newsfeed_links(chrome))
    for _ in range(3):
        chrome.execute_script(MORE)
        with suppress(TimeoutException):
            wait = WebDriverWait(chrome, page_seconds / 4, 0.1)
            wait.until(lambda chrome: len(newsfeed_links(chrome)) > before)
            return True
    return False


def count_requests(chrome: webdriver.Chrome, host: str) -> int:
    """How many requests Chrome has sent to `host` since the last call."""
    events = [json.loads(entry["message"])["message"] for entry in chrome.get_log("performance")]
    sent = [event["params"] for event in events if event["method"] == "Network.requestWillBeSent"]
    return sum(urlsplit(params["request"]["url"]).netloc == host for params in sent)
