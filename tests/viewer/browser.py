"""A headless Chromium, driven over its own pipe (Chrome DevTools Protocol): no driver and no package beside it."""

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

_NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
_SECONDS = 60.0  # for one answer, on a busy machine
_KEYS = {"ArrowDown": 40, "ArrowUp": 38, "Enter": 13, "Escape": 27, "Tab": 9}


def chromium() -> str:
    """The program; skips the test where there is none."""
    found = next((path for path in map(shutil.which, _NAMES) if path is not None), None)
    if found is None:
        pytest.skip("no Chromium: apt-get install chromium-headless-shell brings one")
    return found


class Page:
    """One open page: what it holds, what went wrong on it, and what it asked the network for."""

    def __init__(self, to: int, back: int) -> None:
        self.problems: list[str] = []
        self.requests: list[str] = []
        self._to, self._back = to, back
        self._buffer = b""
        self._number = 0
        self._session: str | None = None
        target = self._ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._ask(f"{domain}.enable")

    def open(self, url: str, *, dark: bool = False, width: int = 1500, height: int = 1300) -> None:
        """Loads a page and waits for it; its scripts have run then."""
        self._ask("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._ask("Emulation.setEmulatedMedia", features=[scheme])
        self._ask("Page.navigate", url=url)
        deadline = time.monotonic() + _SECONDS
        while self.evaluate("document.readyState") != "complete" or self.evaluate("location.href") == "about:blank":
            assert time.monotonic() < deadline, f"{url} does not load"

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression."""
        found = self._ask("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def texts(self, selector: str) -> list[str]:
        """The text of all elements, as shown."""
        every = f"document.querySelectorAll({json.dumps(selector)})"
        found: list[str] = self.evaluate(f"[...{every}].map(e => e.innerText ?? e.textContent)")
        return found

    def wait_for(self, selector: str) -> None:
        """Until there is such an element."""
        deadline = time.monotonic() + _SECONDS
        while not self.evaluate(f"document.querySelector({json.dumps(selector)}) !== null"):
            assert time.monotonic() < deadline, f"no {selector}"

    def click(self, selector: str) -> None:
        """A press and release of the mouse in the middle of an element."""
        element = f"document.querySelector({json.dumps(selector)})"
        middle = (
            f"(() => {{ const e = {element}; e.scrollIntoView({{block: 'center'}});"
            "const r = e.getBoundingClientRect(); return [r.x + r.width / 2, r.y + r.height / 2]; })()"
        )
        x, y = self.evaluate(middle)
        for kind in ("mousePressed", "mouseReleased"):
            self._ask("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def press(self, key: str) -> None:
        """A key, where the focus is."""
        named = {"key": key, "code": key, "windowsVirtualKeyCode": _KEYS[key]}
        text = {"text": "\r"} if key == "Enter" else {}
        self._ask("Input.dispatchKeyEvent", type="keyDown", **named, **text)
        self._ask("Input.dispatchKeyEvent", type="keyUp", **named)

    def screenshot(self, path: Path) -> None:
        """What is in sight, as PNG."""
        path.write_bytes(base64.b64decode(self._ask("Page.captureScreenshot", format="png")["data"]))

    def _ask(self, method: str, **params: Any) -> Any:
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self._number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]
            self._note(answer.get("method"), answer.get("params", {}))

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._back], [], [], _SECONDS)
            assert ready, "Chromium does not answer"
            more = os.read(self._back, 1 << 20)
            assert more, "Chromium ended"
            self._buffer += more
        message, _, self._buffer = self._buffer.partition(b"\0")
        answer: dict[str, Any] = json.loads(message)
        return answer

    def _note(self, method: str | None, params: dict[str, Any]) -> None:
        if method == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            self.problems.append(details.get("exception", {}).get("description", details["text"]))
        elif method == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.problems.append(params["entry"]["text"])
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "assert"):
            self.problems.append(str(params["args"]))
        elif method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])


def _high(fd: int) -> int:
    high = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 20)
    os.close(fd)
    return high


@contextmanager
def new_page(profile: Path) -> Iterator[Page]:
    """A page of a Chromium of its own, which ends with it; ``profile`` is a folder it may write to."""
    # It reads its descriptor 3 and writes to 4, which none of these may be.
    read_there, to, back, write_there = map(_high, (*os.pipe(), *os.pipe()))

    def hand_over() -> None:
        os.dup2(read_there, 3)
        os.dup2(write_there, 4)

    sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
    command = [chromium(), "--headless", "--disable-gpu", f"--user-data-dir={profile}", "--remote-debugging-pipe"]
    silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen([*command, *sandbox], preexec_fn=hand_over, pass_fds=(3, 4), **silent)
    for fd in (read_there, write_there):
        os.close(fd)
    try:
        yield Page(to, back)
    finally:
        for fd in (to, back):
            os.close(fd)  # it ends when nobody listens
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
