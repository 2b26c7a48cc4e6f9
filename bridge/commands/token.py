"""`token`: shows which tokens there are, gets one with the account, or accepts a pasted one. It prints none."""

import asyncio
import hashlib
import sys
import time
from contextlib import aclosing, suppress
from datetime import datetime

from pydantic import SecretStr

from bridge.commands.report import EXIT_CONFIGURATION, EXIT_REFUSED, Report, configure_log
from bridge.commands.session import SEE_CHECK, GatewaySession, chosen, only
from bridge.commands.terminal import InputEnded, ask
from bridge.gateway import open_gateway
from bridge.gateway.auth import CHECK_PATH
from bridge.gateway.cloud import Cloud
from bridge.gateway.errors import PASTE, TOKEN_PAGE, TokenRejected
from bridge.gateway.token import MAX_TOKEN_LETTERS, Token, TokenCache
from bridge.model import DAY_S, HOUR_S, MINUTE_S, BridgeError, Rejected, Request
from bridge.settings import GatewaySettings, LogSettings, Settings
from bridge.state import IdentityState
from bridge.store import Store

NO_ACCOUNT = "there is no account: set BRIDGE_GATEWAY__USERNAME and BRIDGE_GATEWAY__PASSWORD"

STATE_FOLDER_ORIGIN = "the state folder"
ACCOUNT_ORIGIN = "the Enphase account, just now"


def token_cache(own: GatewaySettings, stored: SecretStr | None, serial: str = "") -> TokenCache:
    """All tokens of one gateway: those of its settings, and the one that is `stored` in the state folder."""
    cache = TokenCache(own)
    if stored is not None:
        cache.restore(stored)
    cache.serial = serial or cache.serial
    return cache


def origin_of(token: Token, cache: TokenCache) -> str:
    """Where a token comes from, for people."""
    return next(
        (setting or STATE_FOLDER_ORIGIN for setting, known in cache.by_origin if known == token), ACCOUNT_ORIGIN
    )


def describe(token: Token) -> str:
    """The role of a token and how long it is valid; nothing secret."""
    return f"role {token.role or 'unknown'}, {_time_left(token)} (until {token.expires:%Y-%m-%d})"


def _time_left(token: Token) -> str:
    seconds = token.expires.timestamp() - time.time()
    span = _span(abs(seconds))
    return f"{span} left" if seconds > 0 else f"expired {span} ago"


def _span(seconds: float) -> str:
    if seconds >= 2 * DAY_S:
        return f"{seconds / DAY_S:.0f} days"
    return f"{seconds / HOUR_S:.0f} hours" if seconds >= 2 * HOUR_S else f"{seconds / MINUTE_S:.0f} minutes"


def _fingerprint(token: Token) -> str:
    """Enough of a hash to tell two tokens apart."""
    return hashlib.sha256(token.secret.get_secret_value().encode()).hexdigest()[:8]


def _show(own: GatewaySettings, store: Store, report: Report) -> None:
    """Report the tokens that there are, without asking anybody."""
    serial = (own.serial or store.serial_of(own.host) or "").lower()
    report.section(f"Gateway {own.host}, {serial or 'serial number not known yet'}")
    if _needs_no_token(own, report):
        return
    cache = token_cache(own, store.load(serial, IdentityState).token if serial else None, serial)
    tokens = [(setting or STATE_FOLDER_ORIGIN, token) for setting, token in cache.by_origin]
    if not cache.serial:  # the gateway is the one that the first readable token is for
        cache.serial = next((its for _, token in tokens if isinstance(token, Token) for its in token.serials), "")
    best = cache.best()
    for origin, token in tokens:
        _report_token(origin, token, cache, report)
    if best is None and own.username:
        report.note("token", "no valid token: `iqgateway2mqtt token get` gets one, as `run` will")
    elif best is None:
        advice = f"get one at {TOKEN_PAGE}, then `iqgateway2mqtt token paste`"
        report.problem("token", f"no valid token: {advice}", EXIT_REFUSED)


def _report_token(origin: str, token: Token | str, cache: TokenCache, report: Report) -> None:
    if isinstance(token, str):
        report.note("token", f"from {origin}: {token}")
        return
    if token == cache.best():
        report.ok("token", f"from {origin}: this one is used")
    else:
        report.note("token", f"from {origin}: {cache.fault_of(token) or 'in reserve'}")
    report.fact("role", token.role or "unknown")
    report.fact("issued", _timestamp(token.issued))
    report.fact("expires", f"{_timestamp(token.expires)}, {_time_left(token)}")
    report.fact("gateway", ", ".join(token.serials) or "unknown")
    report.fact("fingerprint", _fingerprint(token))


def _needs_no_token(own: GatewaySettings, report: Report) -> bool:
    """Whether this gateway needs no token; if so, that is reported."""
    if own.base_url.startswith("https"):
        return False
    report.ok("token", "none is needed: with http:// the firmware is older than 7")
    return True


async def verify_with_gateway(
    settings: Settings, own: GatewaySettings, session: GatewaySession, token: Token
) -> None:
    """Ask the gateway whether it accepts a token.

    Raises:
        TokenRejected: the gateway refuses it.
        BridgeError: the gateway can't be asked.
    """
    alone = own.model_copy(update={"token": token.secret, "token_file": None, "username": None, "password": None})
    async with open_gateway(alone, settings.cloud, pin=session.gateway.fingerprint) as gateway:
        gateway.identify(session.facts.serial)
        answer = await gateway.fetch(Request(CHECK_PATH))
    if b"invalid" in answer.body.lower():
        raise TokenRejected(f"the gateway refuses the token: {PASTE}")


class TokenCommand:
    """Gets or reads a new token of one gateway, checks it and stores it."""

    def __init__(self, settings: Settings, own: GatewaySettings, report: Report) -> None:
        self._settings, self._own, self._report = settings, own, report
        self._store = Store(settings.state_dir)

    async def get(self) -> None:
        self._report.section(f"Gateway {self._own.host}")
        if _needs_no_token(self._own, self._report):
            return
        if self._own.username is None or self._own.password is None:
            self._report.problem("account", NO_ACCOUNT, EXIT_CONFIGURATION)
            return
        cloud = Cloud(self._settings.cloud, self._own.username, self._own.password)
        async with aclosing(GatewaySession(self._settings, self._own, self._store)) as session:
            if serial := await self._identify(session):
                try:
                    token = await cloud.token(serial)
                    token.check(serial, time.time())
                except BridgeError as error:
                    self._report.fault("account", error)
                    return
                self._report.ok("account", f"the account gives a token: {describe(token)}")
                await self._verify(session, token)

    async def is_token_needed(self) -> bool:
        """Whether the gateway answers and needs a token, so that one can be pasted."""
        self._report.section(f"Gateway {self._own.host}")
        if _needs_no_token(self._own, self._report):
            return False
        async with aclosing(GatewaySession(self._settings, self._own, self._store)) as session:
            return await self._identify(session) is not None

    async def paste(self, text: str) -> None:
        """Check a pasted token, ask the gateway whether it accepts it, and store it."""
        async with aclosing(GatewaySession(self._settings, self._own, self._store)) as session:
            try:
                serial = (await session.identify()).serial
                token = Token.parse(text)
                token.check(serial, time.time())
            except BridgeError as error:
                self._report.fault("token", error)
                return
            self._report.ok("token", describe(token))
            await self._verify(session, token)

    async def _identify(self, session: GatewaySession) -> str | None:
        try:
            facts = await session.identify()
        except BridgeError as error:
            self._report.fault("gateway", error, "" if isinstance(error, Rejected) else SEE_CHECK)
            return None
        self._report.ok("gateway", f"{facts.serial}, firmware {facts.firmware or 'unknown'}")
        return facts.serial

    async def _verify(self, session: GatewaySession, token: Token) -> None:
        """Store the token if the gateway accepts it."""
        try:
            await verify_with_gateway(self._settings, self._own, session, token)
        except BridgeError as error:
            self._report.fault("gateway", error, "nothing was stored")
            return
        self._report.ok("gateway", "the gateway accepts the token")
        self._keep(session, token)

    def _keep(self, session: GatewaySession, token: Token) -> None:
        folder = self._settings.state_dir
        if not session.store.save(session.facts.serial, session.state.changed(token=token.secret, cloud=None)):
            advice = "make it writable for this user, or set BRIDGE_STATE_DIR"
            self._report.problem(
                "kept", f"the token is not stored: {folder} can't be written; {advice}", EXIT_CONFIGURATION
            )
            return
        self._report.ok("kept", f"in {folder}, readable only by this user; restart the bridge if it runs")
        cache = token_cache(self._own, None, session.facts.serial)
        for setting, other in cache.by_origin:
            if isinstance(other, Token) and cache.fault_of(other) is None:
                self._report.note("token", f"{setting} is set, and is used first as long as it is valid")


def _timestamp(when: datetime) -> str:
    return f"{when:%Y-%m-%d %H:%M} UTC"


async def _get(settings: Settings, gateway: str | None, report: Report) -> None:
    for own in chosen(settings, gateway):
        await TokenCommand(settings, own, report).get()


def _paste(settings: Settings, gateway: str | None, report: Report) -> None:
    """Read a token from standard input. No event loop runs meanwhile, so that Ctrl-C works."""
    command = TokenCommand(settings, only(settings, gateway), report)
    if not asyncio.run(command.is_token_needed()):
        return
    if sys.stdin.isatty():
        print(f"\nGet a token for this gateway at {TOKEN_PAGE}, and paste it here.")
        text = ""
        with suppress(InputEnded):
            text = ask("Token (it will not show)", secret=True)
    else:
        text = sys.stdin.read(2 * MAX_TOKEN_LETTERS)
    asyncio.run(command.paste(text))


def run(settings: Settings, action: str, gateway: str | None) -> int:
    """Run `token show`, `get` or `paste`. Returns the exit code of the worst problem.

    Raises:
        BadSetting: no gateway is called `gateway`, or one must be named.
    """
    configure_log(LogSettings(level="ERROR", format=settings.log.format))
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
