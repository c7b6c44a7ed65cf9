"""A headless Chromium, driven through chromedriver's own protocol (W3C WebDriver, plain JSON over HTTP)."""

import base64
import http.client
import json
import pathlib
import re
import shutil
import subprocess
import tempfile

from stage import eventually

FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--hide-scrollbars",
]  # fmt: skip
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
KEYS = {"Tab": "\ue004", "Enter": "\ue007", "Space": " ", "Escape": "\ue00c", "Shift": "\ue008"}


def available():
    return bool(shutil.which("chromium") and shutil.which("chromedriver"))


class Browser:
    """One window. Widths are CSS pixels; `dark`, `script` and the size hold for every page that is opened later."""

    def __init__(self):
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="portcullis-browser-"))
        self.log = (self.folder / "chromedriver.log").open("w")
        self.driver = subprocess.Popen(["chromedriver", "--port=0"], stdout=self.log, stderr=self.log)
        try:
            port = eventually(lambda: re.search(r"successfully on port (\d+)", self._printed()), 60, what="chromedriver").group(1)
            # One connection for all: on fresh ones chromedriver has been seen to garble the first line of an answer.
            self.http = http.client.HTTPConnection("127.0.0.1", int(port), timeout=120)
            self.session = "/session"
            options = {"binary": shutil.which("chromium"), "args": [*FLAGS, f"--user-data-dir={self.folder / 'profile'}"]}
            wanted = {"browserName": "chrome", "goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
            session = self._call("", {"capabilities": {"alwaysMatch": wanted}})
            self.session += "/" + session["sessionId"]
        except BaseException:
            self._end()
            raise

    def _printed(self):
        return (self.folder / "chromedriver.log").read_text()

    def _call(self, path, data=None, method="POST"):
        body = None if data is None else json.dumps(data)
        self.http.request(method, self.session + path, body, {"content-type": "application/json"})
        answer = self.http.getresponse()
        text = answer.read().decode()
        assert answer.status == 200, text
        return json.loads(text)["value"]

    def _end(self):
        self.driver.terminate()
        self.driver.wait()
        self.log.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def close(self):
        try:
            self._call("", method="DELETE")
            self.http.close()
        finally:
            self._end()

    def cdp(self, command, **parameters):
        return self._call("/goog/cdp/execute", {"cmd": command, "params": parameters})

    def show(self, width, height, dark=False, script=True, scale=1, reduced=True):
        """What the pages that follow are shown on."""
        mobile = width < 600
        self.cdp("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=mobile)
        features = {"prefers-color-scheme": "dark" if dark else "light", "prefers-reduced-motion": "reduce" if reduced else ""}
        self.cdp("Emulation.setEmulatedMedia", features=[{"name": name, "value": value} for name, value in features.items()])
        self.cdp("Emulation.setScriptExecutionDisabled", value=not script)

    def open(self, url):
        """The whole page: on a busy machine chromedriver has been seen to come back while it was still being read."""
        self.messages()
        self._call("/url", {"url": url})
        eventually(lambda: self.run("return document.readyState") == "complete", within=30, what=f"the whole of {url}")

    def run(self, script, *arguments):
        """What a function body returns within the page."""
        return self._call("/execute/sync", {"script": script, "args": list(arguments)})

    def messages(self):
        """What the page's console was told since the last time."""
        return [one["message"] for one in self._call("/se/log", {"type": "browser"})]

    def find(self, selector):
        return self._call("/element", {"using": "css selector", "value": selector})[ELEMENT]

    def click(self, selector):
        self._call(f"/element/{self.find(selector)}/click", {})

    def type(self, text):
        """Into whatever has the focus, as a keyboard does."""
        keys = [KEYS[text]] if text in KEYS else list(text)
        actions = [{"type": kind, "value": key} for key in keys for kind in ("keyDown", "keyUp")]
        self._call("/actions", {"actions": [{"type": "key", "id": "keyboard", "actions": actions}]})

    def picture(self, file=None, whole=False):
        """A PNG of the window, or of the whole page."""
        shot = self.cdp("Page.captureScreenshot", format="png", captureBeyondViewport=whole)["data"]
        png = base64.b64decode(shot)
        if file:
            pathlib.Path(file).write_bytes(png)
        return png

    def accessible(self):
        """(role, name) of everything that assistive technology is told, in order.

        Chromium makes this tree beside the page and tells parts of it meanwhile: it is whole once it has all the
        headings that are seen, and says the same twice. The page's own scripts end for that: a page that tells
        something new every second says nothing twice where the tree takes as long.
        """
        seen = "return [...document.querySelectorAll('h1, h2')].filter(one => one.checkVisibility()).length"
        before = []

        def whole():
            nodes = self.cdp("Accessibility.getFullAXTree")["nodes"]
            told = [node for node in nodes if not node.get("ignored")]
            before.append([(node["role"]["value"], node.get("name", {}).get("value", "")) for node in told])
            headings = [name for role, name in before[-1] if role == "heading"]
            return len(headings) >= self.run(seen) and before[-2:-1] == before[-1:] and before[-1]

        self.cdp("Emulation.setScriptExecutionDisabled", value=True)
        try:
            return eventually(whole, within=30, what="the tree for assistive technology")
        finally:
            self.cdp("Emulation.setScriptExecutionDisabled", value=False)
