"""A headless Chromium that tests open pages in, spoken to by the DevTools protocol over a pipe."""

import base64
import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import tempfile
import time

EXECUTABLE = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
_DEADLINE_SECONDS = 120
_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
)


class Page:
    """A page in a browser of its own, as a context manager that leaves no process behind.

    Args:
        path: of the file.
        width, height: of the window, pixels.
        dark: whether the person prefers dark colors.

    Attributes:
        complaints: texts of the errors and warnings on the console, exceptions, and refused or failed requests.
        requests: addresses that the page asked for.
    """

    def __init__(self, path, width=1280, height=900, dark=False):
        self._path, self._width, self._height, self._dark = os.path.abspath(path), width, height, dark
        self.complaints, self.requests = [], []
        self._number, self._buffer, self._answers, self._loaded = 0, b"", {}, False

    def __enter__(self):
        self._profile = tempfile.mkdtemp(prefix="chromium-")
        inward, self._write = os.pipe()
        self._read, outward = os.pipe()
        # The browser reads commands from descriptor 3 and writes to 4.
        script = 'exec "${@:3}" 3<&"$1" 4>&"$2"'
        command = [EXECUTABLE, *_FLAGS, f"--user-data-dir={self._profile}", "about:blank"]
        self._process = subprocess.Popen(
            ["bash", "-c", script, "bash", str(inward), str(outward), *command],
            pass_fds=[inward, outward],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.close(inward)
        os.close(outward)
        try:
            self._open()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exception):
        with contextlib.suppress(OSError):
            self._send("Browser.close", in_page=False)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=10)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        os.close(self._read)
        os.close(self._write)
        shutil.rmtree(self._profile, ignore_errors=True)

    def _open(self):
        self._session = None
        target = self.call("Target.createTarget", in_page=False, url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", in_page=False, targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=self._width,
            height=self._height,
            deviceScaleFactor=1,
            mobile=False,
        )
        scheme = "dark" if self._dark else "light"
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.call("Page.navigate", url=f"file://{self._path}")
        deadline = time.monotonic() + _DEADLINE_SECONDS
        while not self._loaded:
            self._receive(deadline)

    def evaluate(self, expression):
        """Returns what an expression is in the page."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def mouse(self, kind, x, y):
        """Moves, presses or releases the mouse: `mouseMoved`, `mousePressed` or `mouseReleased`."""
        pressed = {"button": "left", "clickCount": 1} if kind != "mouseMoved" else {}
        self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, **pressed)

    def screenshot(self, path):
        """Writes a picture of the whole page as PNG."""
        data = self.call("Page.captureScreenshot", captureBeyondViewport=True)["data"]
        with open(path, "wb") as file:
            file.write(base64.b64decode(data))

    def call(self, method, in_page=True, **parameters):
        """Calls a method of the protocol; returns its result."""
        number = self._send(method, in_page, **parameters)
        deadline = time.monotonic() + _DEADLINE_SECONDS
        while number not in self._answers:
            self._receive(deadline)
        answer = self._answers.pop(number)
        assert "error" not in answer, (method, answer["error"])
        return answer["result"]

    def _send(self, method, in_page=True, **parameters):
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if in_page and self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        return self._number

    def _receive(self, deadline):
        """Reads what the browser says next."""
        while b"\0" not in self._buffer:
            assert time.monotonic() < deadline, "Chromium does not answer"
            if select.select([self._read], [], [], 1)[0]:
                content = os.read(self._read, 1 << 20)
                assert content, "Chromium has ended"
                self._buffer += content
        line, _, self._buffer = self._buffer.partition(b"\0")
        message = json.loads(line)
        if "id" in message:
            self._answers[message["id"]] = message
            return
        method, content = message["method"], message.get("params", {})
        if method == "Page.loadEventFired":
            self._loaded = True
        elif method == "Network.requestWillBeSent":
            self.requests.append(content["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            details = content["exceptionDetails"]
            self.complaints.append(details.get("exception", {}).get("description") or details["text"])
        elif method == "Runtime.consoleAPICalled" and content["type"] in ("error", "warning", "assert"):
            self.complaints.append(str([part.get("value") for part in content["args"]]))
        elif method == "Log.entryAdded" and content["entry"]["level"] in ("error", "warning"):
            self.complaints.append(content["entry"]["text"])
