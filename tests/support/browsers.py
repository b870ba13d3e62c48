"""Chromium without a window, as Debian packages it: `chromium` and `chromium-driver`."""

from __future__ import annotations

import base64
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

PATIENCE = 60.0
"""Seconds for which a page may take to show something."""

DESKTOP, PHONE = (1280, 900), (390, 844)


def browser_missing() -> str | None:
    """Why there is no browser; None if there is one."""
    missing = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
    if not missing:
        return None
    return f"no {' and no '.join(missing)}: install the Debian packages chromium, chromium-driver"


ARGUMENTS = [
    "--headless=new",
    "--no-sandbox",  # tests may run as root in a container
    "--disable-dev-shm-usage",
    "--disable-gpu",
    "--hide-scrollbars",
    # Nothing but this machine can be reached: a page that needs more would show it.
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
]

_ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
"""The member under which WebDriver gives the id of an element."""


@contextmanager
def chromium(address: str) -> Iterator[Window]:
    """A window of the browser, controlled by W3C WebDriver."""
    with subprocess.Popen(  # noqa: S603  # found above
        [shutil.which("chromedriver") or "", "--port=0"], stdout=subprocess.PIPE, text=True
    ) as driver:
        try:
            port = _port(driver)
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
                options = {"binary": shutil.which("chromium"), "args": ARGUMENTS}
                capabilities = {
                    "goog:chromeOptions": options,
                    "goog:loggingPrefs": {"browser": "ALL"},
                }
                asked = {"capabilities": {"alwaysMatch": capabilities}}
                session = client.post("/session", json=asked).json()["value"]["sessionId"]
                try:
                    yield Window(client, f"/session/{session}", address)
                finally:
                    client.delete(f"/session/{session}")
        finally:
            driver.terminate()


def _port(driver: subprocess.Popen[str]) -> int:
    assert driver.stdout is not None
    for line in driver.stdout:
        if found := re.search(r"started successfully on port (\d+)", line):
            return int(found[1])
    raise AssertionError("chromedriver has ended")


class Window:
    """The browser's window, in words of who uses it."""

    def __init__(self, client: httpx.Client, session: str, address: str) -> None:
        self._client = client
        self._session = session
        self.address = address.rstrip("/")

    def _ask(self, command: str, **given: Any) -> Any:
        answer = self._client.post(f"{self._session}/{command}", json=given).json()["value"]
        assert not (isinstance(answer, dict) and "error" in answer), answer["message"]
        return answer

    def _devtools(self, command: str, **parameters: Any) -> None:
        self._ask("goog/cdp/execute", cmd=command, params=parameters)

    def size(self, size: tuple[int, int]) -> None:
        width, height = size
        self._devtools(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=size == PHONE,
        )

    def dark(self, is_dark: bool) -> None:
        scheme = {"name": "prefers-color-scheme", "value": "dark" if is_dark else "light"}
        self._devtools("Emulation.setEmulatedMedia", features=[scheme])

    def open(self, path: str) -> None:
        self._ask("url", url=self.address + path)

    def sees(self, text: str) -> None:
        """Wait until the page shows this text."""
        deadline = time.monotonic() + PATIENCE
        while text not in (shown := self.text()):
            assert time.monotonic() < deadline, f"{text!r} is not in:\n{shown}"
            time.sleep(0.05)

    def text(self) -> str:
        return str(self.run("return document.body ? document.body.innerText : ''"))

    def click(self, css: str) -> None:
        self._ask(f"element/{self._find(css)}/click")

    def type(self, css: str, text: str) -> None:
        self._ask(f"element/{self._find(css)}/value", text=text)

    def _find(self, css: str) -> str:
        found = self._ask("element", using="css selector", value=css)
        return str(found[_ELEMENT])

    def run(self, script: str) -> Any:
        return self._ask("execute/sync", script=script, args=[])

    def scrolls_sideways(self) -> bool:
        return bool(self.run("return document.documentElement.scrollWidth > window.innerWidth"))

    def complaints(self) -> list[str]:
        """What the browser has written to its console, such as what the policy has blocked."""
        return [entry["message"] for entry in self._ask("se/log", type="browser")]

    def take_picture(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        picture = self._client.get(f"{self._session}/screenshot").json()["value"]
        path.write_bytes(base64.b64decode(picture))
