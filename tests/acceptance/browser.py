"""A headless Chromium, driven by its own protocol: enough to look at a page and to take its picture."""

import asyncio
import base64
import itertools
import json
import re
import subprocess
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from brokers import program
from websockets.asyncio.client import ClientConnection, connect

ADDRESS = re.compile(r"DevTools listening on (ws://\S+)")
OPTIONS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--remote-debugging-port=0",
)
LOOK = Path(__file__).with_name("look.js").read_text()
TEXT = """
(() => {
  const parts = [];
  const walk = (node) => {
    if (node.nodeType === Node.TEXT_NODE) parts.push(node.textContent);
    if (node.shadowRoot) walk(node.shadowRoot);
    const inside = node.tagName === "SLOT" ? node.assignedNodes() : node.childNodes;
    if (!["STYLE", "SCRIPT"].includes(node.tagName)) inside.forEach(walk);
  };
  walk(document.body);
  return parts.join(" ").replace(/\\s+/g, " ");
})()
"""
TAGS = """
(() => {
  const tags = [];
  const walk = (node) => {
    if (node.tagName) tags.push(node.tagName.toLowerCase());
    if (node.shadowRoot) walk(node.shadowRoot);
    node.childNodes.forEach(walk);
  };
  walk(document.body);
  return tags;
})()
"""
PLACE = """
((tag, text) => {
  let place = null;
  const walk = (node) => {
    if (node.tagName && node.tagName.toLowerCase() === tag && node.textContent.includes(text)) {
      const box = node.getBoundingClientRect();
      if (box.width && box.height) place = place || [box.x, box.y, box.width, box.height];
    }
    if (node.shadowRoot) walk(node.shadowRoot);
    node.childNodes.forEach(walk);
  };
  walk(document.body);
  return place;
})
"""


class Page:
    """One page. Times out nowhere: who asks waits by a condition of its own."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket, self._ids = socket, itertools.count(1)
        self._session: Mapping[str, str] = {}
        self._seen: tuple[str, str, Any] | None = None

    async def open(self, width: int, height: int, scale: float, script: str) -> None:
        """An empty page of this size; `script` runs before those of each document."""
        target = await self._do("Target.createTarget", url="about:blank")
        attached = await self._do("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self._session = {"sessionId": attached["sessionId"]}
        await self.resize(width, height, scale)
        await self._do("Page.enable")
        await self._do("Page.addScriptToEvaluateOnNewDocument", source=script)

    async def resize(self, width: int, height: int, scale: float = 1) -> None:
        size = {"width": width, "height": height, "deviceScaleFactor": scale, "mobile": False}
        await self._do("Emulation.setDeviceMetricsOverride", **size)

    async def go(self, url: str) -> None:
        await self._do("Page.navigate", url=url)

    async def text(self) -> str:
        """All that it shows, in shadow trees, too."""
        return str(await self._evaluate(TEXT))

    async def tags(self) -> list[str]:
        return list(await self._evaluate(TAGS))

    async def click(self, tag: str, text: str = "", *, times: int = 1) -> bool:
        """Press the left button on the first visible element with this tag and text, if it rests where it was seen
        at the last call. Returns whether it did.
        """
        place = await self._evaluate(f"({PLACE})({json.dumps(tag)}, {json.dumps(text)})")
        before, self._seen = self._seen, (tag, text, place)
        if not place or before != self._seen:
            return False
        x, y, width, height = place
        where = {"x": x + width / 2, "y": y + height / 2, "button": "left", "clickCount": times}
        for what in ("mousePressed", "mouseReleased"):
            await self._do("Input.dispatchMouseEvent", type=what, **where)
        return True

    async def write(self, text: str) -> None:
        """Type a text in place of what is selected, and press Enter."""
        await self._do("Input.insertText", text=text)
        enter = {"key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 13, "text": "\r"}
        for what in ("keyDown", "keyUp"):
            await self._do("Input.dispatchKeyEvent", type=what, **enter)

    async def picture(self) -> bytes:
        """As PNG."""
        shot = await self._do("Page.captureScreenshot", format="png", optimizeForSpeed=False)
        return base64.b64decode(shot["data"])

    async def measured(self, circles: Mapping[str, Sequence[float | str]], *colours: str) -> Any:
        """What `look.js` finds in the page and in its picture.

        `circles` have centre, radius and colour. Of each of `colours`, `painted` is the number of pixels.
        """
        shot = base64.b64encode(await self.picture()).decode()
        return await self._evaluate(f"({LOOK})({json.dumps(shot)}, {json.dumps(circles)}, {json.dumps(colours)})")

    async def _evaluate(self, script: str) -> Any:
        how = {"returnByValue": True, "awaitPromise": True}
        answer = await self._do("Runtime.evaluate", expression=script, **how)
        return answer["result"].get("value") or ""  # while a document is being replaced there is none

    async def _do(self, method: str, **params: Any) -> Any:
        number = next(self._ids)
        message = {"id": number, "method": method, "params": params, **self._session}
        await self._socket.send(json.dumps(message))
        while True:
            answer = json.loads(await self._socket.recv())
            if answer.get("id") == number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]


@asynccontextmanager
async def browsing(folder: Path) -> AsyncIterator[Page]:
    """A browser with a profile of its own. `CI` installs chromium; elsewhere see who calls."""
    command = (program("chromium"), *OPTIONS, f"--user-data-dir={folder / 'chromium'}")
    process = await asyncio.create_subprocess_exec(
        *command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    assert process.stderr is not None
    try:
        address = await _address(process.stderr)
        draining = asyncio.create_task(process.stderr.read())
        async with connect(
            address, proxy=None, max_size=None, ping_interval=None, open_timeout=None, close_timeout=None
        ) as socket:
            yield Page(socket)
            await socket.send(json.dumps({"id": 0, "method": "Browser.close"}))
            await process.wait()
        await draining
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def _address(stream: asyncio.StreamReader) -> str:
    async for line in stream:
        if found := ADDRESS.search(line.decode()):
            return found[1]
    raise AssertionError("chromium does not start")
