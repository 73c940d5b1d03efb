"""A headless Chromium, driven by its DevTools protocol over a pipe: enough to look at a page and to click through it as somebody would.

Source: https://chromedevtools.github.io/devtools-protocol/ (messages are JSON, each ended by a zero byte).
"""

import base64
import json
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
WAIT_SECONDS = 60


class Browser:
    """One page of a browser of its own."""

    def __init__(self):
        self.folder = tempfile.TemporaryDirectory(prefix="hepti-browser-", ignore_cleanup_errors=True)
        theirs_in, ours_out = os.pipe()
        ours_in, theirs_out = os.pipe()

        def placed():  # where the browser looks for them
            first, second = os.dup(theirs_in), os.dup(theirs_out)
            os.dup2(first, 3)
            os.dup2(second, 4)

        words = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", f"--user-data-dir={self.folder.name}"]
        quiet = subprocess.DEVNULL
        self.process = subprocess.Popen([*words, "about:blank"], pass_fds=(3, 4, theirs_in, theirs_out), preexec_fn=placed,
                                        stdin=quiet, stdout=quiet, stderr=quiet)  # fmt: skip
        os.close(theirs_in)
        os.close(theirs_out)
        self.writing, self.reading = os.fdopen(ours_out, "wb"), os.fdopen(ours_in, "rb")
        self.number, self.session, self.left, self.problems = 0, None, b"", []
        target = next(one for one in self.ask("Target.getTargets")["targetInfos"] if one["type"] == "page")
        self.session = self.ask("Target.attachToTarget", targetId=target["targetId"], flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.ask(f"{domain}.enable")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        self.writing.close()
        self.reading.close()
        self.folder.cleanup()

    def ask(self, method, **parameters):
        """Return what the browser answers; note what it complains of meanwhile."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters} | ({"sessionId": self.session} if self.session else {})
        self.writing.write(json.dumps(message).encode() + b"\0")
        self.writing.flush()
        while True:
            said = self._next()
            if said.get("method") == "Runtime.exceptionThrown" or said.get("params", {}).get("entry", {}).get("level") == "error":
                self.problems.append(json.dumps(said["params"])[:500])
            if said.get("id") == self.number:
                assert "error" not in said, said
                return said["result"]

    def _next(self):
        while b"\0" not in self.left:
            more = os.read(self.reading.fileno(), 1 << 20)
            assert more, "the browser has ended"
            self.left += more
        said, _, self.left = self.left.partition(b"\0")
        return json.loads(said)

    def show(self, url, width=1280, height=800, dark=False):
        """Go to a page on a screen of this size."""
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600)
        self.ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}])
        self.ask("Page.navigate", url=url)

    def value(self, script):
        """Return what a script gives."""
        found = self.evaluated(script)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def evaluated(self, script):
        return self.ask("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)

    def text(self, selector):
        return self.value(f"(document.querySelector({json.dumps(selector)}) || {{innerText: ''}}).innerText")

    def until(self, script):
        """Wait until a script gives something true, and return it; one that fails, as where the page is not there yet, is tried again."""
        end = time.monotonic() + WAIT_SECONDS
        while not (found := self.evaluated(script)["result"].get("value")):
            assert time.monotonic() < end, f"{script} never came true on: {self.text('body')}"
            time.sleep(0.05)
        return found

    def click(self, selector):
        """Click in the middle of an element, as a mouse does."""
        one = f"document.querySelector({json.dumps(selector)})"
        self.value(f"{one}.scrollIntoView({{block: 'center'}})")
        box = self.value(f"(box => [box.x + box.width / 2, box.y + box.height / 2])({one}.getBoundingClientRect())")
        for kind in ("mousePressed", "mouseReleased"):
            self.ask("Input.dispatchMouseEvent", type=kind, x=box[0], y=box[1], button="left", clickCount=1)

    def write(self, text):
        """Write where the focus is."""
        self.ask("Input.insertText", text=text)

    def picture(self, path):
        """Keep how the whole page looks."""
        size = self.ask("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        Path(path).write_bytes(base64.b64decode(self.ask("Page.captureScreenshot", clip=clip, captureBeyondViewport=True)["data"]))
