"""Drives a headless Chromium by its DevTools protocol: opens a page, runs JavaScript, lists requests."""

import asyncio
import contextlib
import json
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import aiohttp

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")
READY = "document.body && document.body.dataset.ready === 'yes'"


class Page:
    def __init__(self, socket):
        self._socket = socket
        self._number = 0
        self.requested = []  # addresses that the page asked for
        self.errors = []

    async def call(self, method, **params):
        self._number += 1
        await self._socket.send_json({"id": self._number, "method": method, "params": params})
        while True:
            message = await self._socket.receive_json(timeout=60)
            if message.get("id") == self._number:
                assert "error" not in message, message
                return message["result"]
            if message["method"] == "Network.requestWillBeSent":
                self.requested.append(message["params"]["request"]["url"])
            if message["method"] in ("Runtime.exceptionThrown", "Log.entryAdded"):
                self.errors.append(json.dumps(message["params"]))

    async def all_of(self, selector):
        """Returns the texts of all elements that a selector names."""
        texts = f"[...document.querySelectorAll({json.dumps(selector)})].map((e) => e.textContent)"
        return await self.run(texts)

    async def choose(self, name, value):
        """Chooses a value of a select, as a person does."""
        script = f"$({json.dumps(name)}).value = {json.dumps(value)}; $({json.dumps(name)}).onchange()"
        await self.run(f"(async () => {{ {script}; await new Promise((r) => setTimeout(r, 200)); }})()")

    async def until(self, condition):
        """Waits until an expression is true, also of a page that is loaded meanwhile."""
        end = time.monotonic() + 60
        while not await self.run(condition):
            assert time.monotonic() < end, self.errors
            await asyncio.sleep(0.05)

    async def run(self, script):
        """Returns the value of an expression, after its promise."""
        found = await self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")


@contextlib.asynccontextmanager
async def opened(path: Path, place: str = ""):
    """The page of a file, at a place in it, loaded and ready."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0",
                   f"--user-data-dir={profile}", "about:blank"]  # fmt: skip
        browser = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            async with aiohttp.ClientSession() as session:
                port = _port(Path(profile))
                async with session.get(f"http://127.0.0.1:{port}/json/list") as answer:
                    (target,) = [t for t in await answer.json() if t["type"] == "page"]
                async with session.ws_connect(target["webSocketDebuggerUrl"], max_msg_size=2**26) as socket:
                    page = Page(socket)
                    for domain in ("Page", "Network", "Runtime", "Log"):
                        await page.call(f"{domain}.enable")
                    await page.call("Page.navigate", url=path.as_uri() + place)
                    await page.until(READY)
                    yield page
        finally:
            browser.terminate()
            browser.wait()


def _port(profile: Path) -> str:
    file = profile / "DevToolsActivePort"
    end = time.monotonic() + 60
    while not (file.exists() and file.read_text().strip()):
        assert time.monotonic() < end, "Chromium did not start"
        time.sleep(0.05)
    return file.read_text().split("\n")[0]
