"""A real Chromium without a window, asked over its DevTools protocol what a page does in it.

Through a pipe, which Chromium has for that: there is no port to find and no package to install.
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

_SECONDS = 60
_OPTIONS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--hide-scrollbars",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-dev-shm-usage",
    "--remote-debugging-pipe",
]
_KEYS = {"Tab": ("Tab", 9, ""), "Space": (" ", 32, " ")}


class Tab:
    """A tab that has a page open.

    Attributes
    ----------
    requests : list of str
        What the page asked for, itself included; not what lies in it as ``data:``.
    said : list of str
        What came to the console: its own words, errors, and what was refused.
    """

    def __init__(self, browser: _Browser, url: str) -> None:
        self._browser, self.requests, self.said = browser, [], []
        browser.on_event = self._event
        target = browser.ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = browser.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Log", "Runtime"):
            self._ask(f"{domain}.enable")
        self._ask("Emulation.setFocusEmulationEnabled", enabled=True)
        self._loaded = False
        self._ask("Page.navigate", url=url)
        browser.wait(lambda: self._loaded)

    def look(self, width: int, height: int = 900, *, dark: bool = False, printed: bool = False) -> None:
        """Look at the page in a window of some size."""
        self._ask("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._ask("Emulation.setEmulatedMedia", media="print" if printed else "screen", features=[scheme])

    def evaluate(self, script: str) -> Any:
        """Return what an expression of JavaScript is."""
        found = self._ask("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def press(self, key: str) -> None:
        """Press a key: Tab or Space."""
        name, code, text = _KEYS[key]
        for kind in ("keyDown", "keyUp"):
            what = {"text": text} if text and kind == "keyDown" else {}
            self._ask("Input.dispatchKeyEvent", type=kind, key=name, code=key, windowsVirtualKeyCode=code, **what)

    def picture(self, path: Path, height: int) -> None:
        """Save what the page looks like, from its top, as PNG."""
        width = self.evaluate("innerWidth")
        clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
        shot = self._ask("Page.captureScreenshot", format="png", clip=clip, captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))

    def _ask(self, method: str, **parameters: Any) -> Any:
        return self._browser.ask(method, self._session, **parameters)

    def _event(self, name: str, about: dict[str, Any]) -> None:
        if name == "Page.loadEventFired":
            self._loaded = True
        elif name == "Network.requestWillBeSent" and not about["request"]["url"].startswith("data:"):
            self.requests.append(about["request"]["url"])
        elif name in ("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown"):
            self.said.append(json.dumps(about))


class _Browser:
    def __init__(self, to: int, back: int) -> None:
        self._to, self._back, self._number, self._rest = to, back, 0, b""
        self._answers: dict[int, Any] = {}
        self.on_event: Any = lambda name, about: None

    def ask(self, method: str, session: str | None = None, **parameters: Any) -> Any:
        self._number += 1
        number = self._number
        message = {"id": number, "method": method, "params": parameters, **({"sessionId": session} if session else {})}
        os.write(self._to, json.dumps(message).encode() + b"\0")
        self.wait(lambda: number in self._answers)
        answer = self._answers.pop(number)
        assert "error" not in answer, (method, answer)
        return answer["result"]

    def wait(self, until: Any) -> None:
        end = time.monotonic() + _SECONDS
        while not until():
            ready, _, _ = select.select([self._back], [], [], max(0, end - time.monotonic()))
            read = os.read(self._back, 1 << 20) if ready else b""
            if not read:
                raise TimeoutError("Chromium does not answer")
            *whole, self._rest = (self._rest + read).split(b"\0")
            for message in map(json.loads, whole):
                if "id" in message:
                    self._answers[message["id"]] = message
                else:
                    self.on_event(message["method"], message.get("params", {}))


@contextmanager
def opened(path: Path) -> Iterator[Tab]:
    """Open a file in a browser of its own, which can reach nothing else; skips where there is none."""
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    with tempfile.TemporaryDirectory(prefix="imgcurate-browser-", ignore_cleanup_errors=True) as profile:
        hears, to = os.pipe()
        back, says = os.pipe()
        options = [*_OPTIONS, f"--user-data-dir={profile}", "--host-resolver-rules=MAP * ~NOTFOUND"]
        # It reads from 3 and writes to 4.
        started = ["bash", "-c", f'exec "$@" 3<&{hears} 4>&{says}', "browser", program, *options]
        process = subprocess.Popen(started, pass_fds=(hears, says), stderr=subprocess.DEVNULL)
        os.close(hears)
        os.close(says)
        try:
            browser = _Browser(to, back)
            yield Tab(browser, path.absolute().as_uri())
            browser.ask("Browser.close")
        finally:
            process.kill()
            process.wait()
            os.close(to)
            os.close(back)
