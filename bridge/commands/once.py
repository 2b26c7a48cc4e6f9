"""`once`: one poll of everything, printed and not published: what would be sent."""

import asyncio
import sys

from bridge.commands import log
from bridge.commands.codes import REFUSED, UNAVAILABLE
from bridge.config import LogSettings, Settings
from bridge.model import BridgeError, Message, Rejected, Unsupported
from bridge.service import make_poller
from bridge.store import Store


async def _poll(settings: Settings) -> tuple[dict[str, Message], list[BridgeError]]:
    tree: dict[str, Message] = {}
    store = Store(settings.state_dir)
    errors: list[BridgeError] = []
    for gateway in settings.all_gateways:
        poller = make_poller(settings, gateway, store, lambda message: tree.update({message.topic: message}))
        try:
            errors += await poller.once()
        finally:
            await poller.aclose()
    return tree, errors


def run(settings: Settings) -> int:
    """Print `topic payload` lines; the exit code is that of the worst failure."""
    log.configure(LogSettings(level="ERROR", format=settings.log.format))
    tree, errors = asyncio.run(_poll(settings))
    for topic in sorted(tree):
        if tree[topic].payload:
            print(topic, tree[topic].payload)
    for text in dict.fromkeys(map(str, errors)):
        print(f"iqgateway2mqtt: {text}", file=sys.stderr)
    failures = [error for error in errors if not isinstance(error, Unsupported)]
    if any(isinstance(error, Rejected) for error in failures):
        return REFUSED
    return UNAVAILABLE if failures else 0
