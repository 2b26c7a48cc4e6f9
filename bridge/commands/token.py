"""`token`: shows what tokens there are, gets one by the account, or takes a pasted one. None is ever printed."""

import asyncio
import getpass
import sys
import time
from contextlib import suppress
from datetime import datetime

from bridge.commands import log, papers
from bridge.commands.codes import CONFIGURATION, REFUSED
from bridge.commands.report import Report
from bridge.commands.visit import TELLS_MORE, Visit, chosen, only
from bridge.config import GatewaySettings, LogSettings, Settings
from bridge.gateway import Cloud, Token, TokenRejected, open_gateway
from bridge.gateway.auth import CHECK
from bridge.gateway.errors import PASTE, TOKEN_PAGE
from bridge.gateway.shelf import Shelf
from bridge.gateway.token import MAX_LENGTH
from bridge.model import BridgeError, Rejected, Request
from bridge.store import GatewayState, Store

NO_ACCOUNT = "there is no account: set BRIDGE_GATEWAY__USERNAME and BRIDGE_GATEWAY__PASSWORD"


def _show(own: GatewaySettings, store: Store, report: Report) -> None:
    """Asks nobody."""
    serial = (own.serial or store.serial_of(own.host) or "").lower()
    report.section(f"Gateway {own.host}, {serial or 'whose serial number is not known yet'}")
    if _is_open(own, report):
        return
    state = store.load(serial) if serial else GatewayState()
    shelf = Shelf(own, state.token, time.time, time.monotonic)
    at_hand = papers.at_hand(own, state.token)
    shelf.serial = serial or next((its for paper in at_hand if paper.token for its in paper.token.serials), "")
    best = shelf.best()
    source = papers.source_of(best, at_hand) if best else ""
    for paper in at_hand:
        _tell(paper, shelf.serial, report, serves=paper.source == source)
    if best is None and own.username:
        report.note("token", "none that serves: `iqgateway2mqtt token get` gets one, as `run` will")
    elif best is None:
        advice = f"get one at {TOKEN_PAGE}, then `iqgateway2mqtt token paste`"
        report.problem("token", f"none that serves: {advice}", REFUSED)


def _tell(paper: papers.Paper, serial: str, report: Report, *, serves: bool) -> None:
    token = paper.token
    if token is None:
        report.note("token", f"from {paper.source}: {paper.problem}")
        return
    if serves:
        report.ok("token", f"from {paper.source}: this one serves")
    else:
        report.note("token", f"from {paper.source}: {paper.fault(serial) or 'in reserve'}")
    report.fact("role", token.role or "unknown")
    report.fact("issued", _moment(token.issued))
    report.fact("expires", f"{_moment(token.expires)}, {papers.left(token)}")
    report.fact("gateway", ", ".join(token.serials) or "unknown")
    report.fact("fingerprint", papers.fingerprint(token))


def _is_open(own: GatewaySettings, report: Report) -> bool:
    """Whether this gateway knows no tokens."""
    if own.base_url.startswith("https"):
        return False
    report.ok("token", "none is needed: firmware before 7, over plain HTTP, knows no tokens")
    return True


async def prove(settings: Settings, own: GatewaySettings, visit: Visit, token: Token) -> None:
    """The gateway has the last word about a token. Raises BridgeError where it does not take it."""
    alone = own.model_copy(update={"token": token.secret, "token_file": None, "username": None, "password": None})
    async with open_gateway(alone, settings.cloud, pin=visit.gateway.fingerprint) as gateway:
        gateway.identify(visit.facts.serial)
        answer = await gateway.fetch(Request(CHECK))
    if b"invalid" in answer.body.lower():
        raise TokenRejected(f"the gateway refuses the token: {PASTE}")


class Desk:
    """Where a new token of one gateway is got, judged and kept."""

    def __init__(self, settings: Settings, own: GatewaySettings, report: Report) -> None:
        self._settings, self._own, self._report = settings, own, report
        self._store = Store(settings.state_dir)

    async def get(self) -> None:
        self._report.section(f"Gateway {self._own.host}")
        if _is_open(self._own, self._report):
            return
        if self._own.username is None or self._own.password is None:
            self._report.problem("account", NO_ACCOUNT, CONFIGURATION)
            return
        cloud = Cloud(self._settings.cloud, self._own.username, self._own.password)
        async with Visit(self._settings, self._own, self._store) as visit:
            if serial := await self._greet(visit):
                try:
                    token = await cloud.token(serial)
                    token.check(serial, time.time())
                except BridgeError as error:
                    self._report.fault("account", error)
                    return
                self._report.ok("account", f"gives a token: {papers.described(token)}")
                await self._prove(visit, token)

    async def greet(self) -> bool:
        """Whether there is a gateway that a token can be pasted for."""
        self._report.section(f"Gateway {self._own.host}")
        if _is_open(self._own, self._report):
            return False
        async with Visit(self._settings, self._own, self._store) as visit:
            return await self._greet(visit) is not None

    async def take(self, text: str) -> None:
        """A pasted one, judged by ourselves and by the gateway."""
        async with Visit(self._settings, self._own, self._store) as visit:
            try:
                serial = (await visit.introduce()).serial
                token = Token.parse(text)
                token.check(serial, time.time())
            except BridgeError as error:
                self._report.fault("token", error)
                return
            self._report.ok("token", papers.described(token))
            await self._prove(visit, token)

    async def _greet(self, visit: Visit) -> str | None:
        try:
            facts = await visit.introduce()
        except BridgeError as error:
            self._report.fault("gateway", error, "" if isinstance(error, Rejected) else TELLS_MORE)
            return None
        self._report.ok("gateway", f"{facts.serial}, firmware {facts.firmware or 'unknown'}")
        return facts.serial

    async def _prove(self, visit: Visit, token: Token) -> None:
        """Only then is the token kept."""
        try:
            await prove(self._settings, self._own, visit, token)
        except BridgeError as error:
            self._report.fault("gateway", error, "nothing is kept")
            return
        self._report.ok("gateway", "takes it")
        self._keep(visit, token)

    def _keep(self, visit: Visit, token: Token) -> None:
        folder = self._settings.state_dir
        if not visit.keep(token):
            advice = "make it writable for this user, or set BRIDGE_STATE_DIR"
            self._report.problem("kept", f"not: {folder} can't be written; {advice}", CONFIGURATION)
            return
        self._report.ok("kept", f"in {folder}, readable for this user alone; restart the bridge if it runs")
        for paper in papers.at_hand(self._own, None):
            if not paper.fault(visit.facts.serial):
                self._report.note("token", f"{paper.source} is set and comes before it as long as it serves")


def _moment(when: datetime) -> str:
    return f"{when:%Y-%m-%d %H:%M} UTC"


async def _get(settings: Settings, gateway: str | None, report: Report) -> None:
    for own in chosen(settings, gateway):
        await Desk(settings, own, report).get()


def _paste(settings: Settings, gateway: str | None, report: Report) -> None:
    """The loop does not run while somebody types: Ctrl-C must work."""
    desk = Desk(settings, only(settings, gateway), report)
    if not asyncio.run(desk.greet()):
        return
    if sys.stdin.isatty():
        print(f"\nGet a token for this gateway at {TOKEN_PAGE}, and paste it here.")
        text = ""
        with suppress(EOFError):  # Ctrl-D in place of a token
            text = getpass.getpass("Token (it will not show): ")
    else:
        text = sys.stdin.read(2 * MAX_LENGTH)
    asyncio.run(desk.take(text))


def run(settings: Settings, action: str, gateway: str | None) -> int:
    log.configure(LogSettings(level="ERROR", format=settings.log.format))
    report = Report()
    match action:
        case "show":
            for own in chosen(settings, gateway):
                _show(own, Store(settings.state_dir), report)
        case "get":
            asyncio.run(_get(settings, gateway, report))
        case _:
            _paste(settings, gateway, report)
    return report.worst
