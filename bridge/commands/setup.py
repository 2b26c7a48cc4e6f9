"""`setup`: asks for token, gateway, broker and a few wishes, checks each answer at once, and writes what works."""

import asyncio
import os
import signal
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import Future
from contextlib import aclosing, suppress
from importlib.util import find_spec
from pathlib import Path
from threading import Thread

from bridge.commands import check
from bridge.commands.check_broker import check_broker
from bridge.commands.draft import (
    TOPIC_SECTIONS,
    Check,
    Sections,
    SettingsDraft,
    SettingsFile,
    SetupAborted,
    broker_of,
    changed_environment,
    choose,
    filled,
    host_of,
    in_words,
)
from bridge.commands.report import (
    EXIT_CONFIGURATION,
    EXIT_STOPPED,
    PROGRAM,
    Report,
    configure_log,
    in_container,
    install_command,
    next_command,
)
from bridge.commands.session import DEFAULT_TIMING, CommandTiming, GatewayAddress, GatewaySession
from bridge.commands.terminal import InputEnded, ask, looks_like_token, unseen
from bridge.commands.token import describe, token_cache, verify_with_gateway
from bridge.gateway.cloud import Cloud
from bridge.gateway.errors import TOKEN_PAGE
from bridge.gateway.mdns import DiscoveredGateway, discover
from bridge.gateway.token import Token
from bridge.model import BadSetting, BridgeError, Facts, Unavailable
from bridge.settings import LogSettings, Settings
from bridge.store import Store

TOPICS = ("token", "gateway", "name", "discovery", "broker", "page")
"""What can be asked for, in this order."""
QUICK_CONNECT_S = 2.0
"""How long it is tried to reach a gateway without TLS after it has not answered with TLS."""
NO_ACCESS = dict.fromkeys(("token", "token_file", "username", "password"), "")
"""The settings that give access to a gateway, none of them set."""
FoundLater = Future[list[DiscoveredGateway]]
"""The gateways that are being looked for."""
ITS_PASSWORD = "Its password (it will not show)"  # noqa: S105 - a question


class GatewayQuestions:
    """Asks for the token or the account, and for the gateway, which then says whether it accepts them."""

    def __init__(self, draft: SettingsDraft, search: FoundLater, timing: CommandTiming) -> None:
        self._draft, self._report, self._search, self._timing = draft, draft.report, search, timing
        self._serial = ""
        self._expected: Collection[str] = ()
        """The gateways that the token is for."""

    def ask(self, wanted: Collection[str]) -> None:
        """Ask for `token`, `gateway` or both. Raises SetupAborted and InputEnded."""
        before, host = self._access, self._draft.of("gateway", "host")
        if "token" in wanted:
            self._report.section("Token")
            print(f"Firmware from 7 on needs a token. Log in at {TOKEN_PAGE}, choose your system")
            print(
                "and gateway, and copy it. Or use an Enphase account without a second factor: with it, the bridge"
            )
            print("gets and renews tokens itself.")
            self._draft.ask_until_accepted("the token", self._ask_access)
        self._report.section("Gateway")
        if "gateway" in wanted or not self._draft.is_accepted(lambda: self._check_gateway(host)):
            self._draft.ask_until_accepted("the gateway", self._ask_gateway)
        if not self._draft.settings().gateway.base_url.startswith("https"):
            self._draft.keep(gateway=NO_ACCESS)
            self._report.ok("token", "none is needed: this gateway has firmware before 7")
        elif not (any(self._access.values()) and self._draft.is_accepted(lambda: self._check_access(self._access))):
            self._draft.keep(gateway=before)
            self._draft.ask_until_accepted("the token", self._ask_access)

    @property
    def _access(self) -> Mapping[str, str]:
        return {field: self._draft.of("gateway", field) for field in NO_ACCESS}

    def _ask_access(self) -> Check:
        user, text = "", ask("Token (paste it, it will not show; empty: use an Enphase account)", secret=True)
        if not text:
            user = ask("E-mail address of the Enphase account (empty: none, as for firmware before 7)")
            text = ask(ITS_PASSWORD, secret=True) if user and not looks_like_token(user) else user
        if looks_like_token(text) or not user:
            return self._check_access({**NO_ACCESS, "token": text})
        return self._check_access({**NO_ACCESS, "username": user, "password": text})

    async def _check_access(self, access: Mapping[str, str]) -> None:
        """Check a token or an account, as far as that is possible before the gateway is known."""
        if access["username"] and not access["password"]:
            raise BadSetting("an account needs a password")
        settings = self._draft.settings(gateway=access)
        token = await _token_of(settings, self._serial)
        if token is not None:
            self._expected = token.serials
            token.check(self._serial or next(iter(token.serials), ""), time.time())
            if self._serial:
                await self._verify(settings, token)
            self._report.ok("token", f"{describe(token)}{'; the gateway accepts it' if self._serial else ''}")
        elif access["username"]:
            self._report.ok("account", "it is tried as soon as the gateway is known")
        self._draft.keep(gateway=access)

    async def _verify(self, settings: Settings, token: Token) -> None:
        async with aclosing(_session(settings)) as session:
            await session.identify()
            await verify_with_gateway(settings, settings.gateway, session, token)

    def _ask_gateway(self) -> Check:
        found = self._found()
        for number, gateway in enumerate(found, 1):
            self._report.fact(str(number), f"gateway {gateway.serial} at {gateway.host}")
        how = "a number, or its address" if found else "none was found: its address, as your router shows it"
        likely = next((str(number) for number, one in enumerate(found, 1) if one.serial in self._expected), "1")
        known = self._draft.of("gateway", "host") or "envoy.local"
        given = ask(f"Which gateway ({how})", likely if found else known)
        if looks_like_token(given):
            return self._take_token(given)
        listed = given.isdecimal() and 0 < int(given) <= len(found)
        return self._check_gateway(found[int(given) - 1].host if listed else host_of(given))

    def _found(self) -> list[DiscoveredGateway]:
        """The gateways found by mDNS; none if its library (an extra) or the network does not allow it."""
        if not self._search.done():
            print("Still looking for gateways in this network ...", flush=True)
        with suppress(ModuleNotFoundError, OSError):
            return self._search.result()
        return []

    async def _take_token(self, text: str) -> None:
        await self._check_access({**NO_ACCESS, "token": text})
        raise BadSetting("that is a token, and is kept as the token; here, the gateway's address is needed")

    async def _check_gateway(self, host: str) -> None:
        """Find out which gateway answers: with TLS, or without, as firmware before 7 needs it."""
        facts: Facts | None = None
        try:
            facts = await self._identify(host)
        except Unavailable:
            plain, quick = f"http://{host}", CommandTiming(connect=min(QUICK_CONNECT_S, self._timing.connect))
            if "://" not in host and await GatewayAddress.from_url(plain, quick).is_open():
                with suppress(BridgeError):
                    host, facts = plain, await self._identify(plain)
            if facts is None:
                raise
        self._serial = facts.serial
        self._draft.keep(gateway={"host": host})
        self._report.ok("gateway", f"{facts.serial}, firmware {facts.firmware or 'unknown'}")

    async def _identify(self, host: str) -> Facts:
        settings = self._draft.settings(gateway={"host": host})
        address = GatewayAddress.from_url(settings.gateway.base_url, self._timing)
        if address.has_name:
            await address.resolve()
        await address.check_port()
        async with aclosing(_session(settings)) as session:
            return await session.identify()


async def _token_of(settings: Settings, serial: str) -> Token | None:
    """The token that these settings give; `None` if none can be had before the gateway is known."""
    own = settings.gateway
    if own.token is not None:
        return Token.parse(own.token.get_secret_value())
    if not serial:
        return None
    if own.username is not None and own.password is not None:
        return await Cloud(settings.cloud, own.username, own.password).token(serial)
    cache = token_cache(own, None, serial)
    if (token := cache.best()) is None:
        raise cache.fault()
    return token


def _session(settings: Settings) -> GatewaySession:
    return GatewaySession(settings, settings.gateway, Store(settings.state_dir))


class OtherQuestions:
    """Asks for what does not concern the gateway: Home Assistant, broker, and status page."""

    def __init__(self, draft: SettingsDraft, timing: CommandTiming) -> None:
        self._draft, self._report, self._timing = draft, draft.report, timing
        default = "host.docker.internal" if in_container() else "localhost"
        self._tried = {"url": draft.of("mqtt", "url") or default, "username": draft.of("mqtt", "username")}

    def ask(self, wanted: Collection[str]) -> None:
        """Ask for these topics. Raises SetupAborted and InputEnded."""
        if {"name", "discovery"} & {*wanted}:
            self._report.section("Home Assistant and openHAB")
        if "name" in wanted:
            self._draft.ask_until_accepted("the name", self._ask_name)
        if "discovery" in wanted:
            print(
                "They find the devices by themselves. Before Home Assistant 2024.11 and openHAB 5.2, they need the"
            )
            print("form `component`. If you use neither, choose `off`.")
            self._draft.ask_until_accepted("discovery", self._ask_discovery)
        if "broker" in wanted:
            self._report.section("Broker")
            self._draft.ask_until_accepted("the broker", self._ask_broker)
        if "page" in wanted:
            self._report.section("Status page")
            self._draft.ask_until_accepted("the page", self._ask_page)

    def _ask_name(self) -> Check:
        given = _optional("Name of the home", "Enphase", self._draft.of("gateway", "name"))
        return self._draft.keep_if_usable("gateway", "name", given)

    def _ask_discovery(self) -> Check:
        known = self._draft.of("homeassistant", "discovery") or "device"
        given = _plain("Form of discovery: device, component or off", known)
        return self._draft.keep_if_usable("homeassistant", "discovery", given.lower())

    def _ask_broker(self) -> Check:
        given = broker_of(_plain("Address of the MQTT broker", self._tried["url"]))
        self._draft.settings(mqtt=given)
        user = given["username"] or _optional("User name at the broker", "none", self._tried["username"])
        if user and not given["username"]:
            given |= {"username": user, "password": ask(ITS_PASSWORD, secret=True)}
        self._tried = given
        if _is_of_gateway(given["password"]):
            raise BadSetting("that is the token of a gateway, and was not sent: the broker's password is needed")
        return self._check_broker(given)

    async def _check_broker(self, given: Mapping[str, str]) -> None:
        settings = self._draft.settings(mqtt=given)
        before = self._report.problems
        await check_broker(settings, Store(settings.state_dir), self._report, self._timing)
        if self._report.problems == before:
            self._draft.keep(mqtt=given)

    def _ask_page(self) -> Check:
        known = self._draft.of("http", "listen")
        return self._check_page(_optional("Port of the page, such as 8080", "no page", known), known)

    async def _check_page(self, given: str, known: str) -> None:
        settings = self._draft.settings(http={"listen": given})
        if given not in ("", known):  # a bridge that runs already has the port that is known
            host, port = settings.http.address
            try:
                (await asyncio.start_server(lambda *_: None, host, port)).close()
            except OSError as problem:
                reason = os.strerror(problem.errno) if problem.errno else str(problem)
                raise BadSetting(f"port {port} can't be used ({reason}): choose another one") from None
        self._draft.keep(http={"listen": given})


def _plain(question: str, default: str = "") -> str:
    """Ask for something that is no secret.

    Raises:
        InputEnded: the input has ended.
        BadSetting: the answer is a token, which nobody may see.
    """
    if looks_like_token(given := ask(question, default)):
        raise BadSetting("that is a token; it was neither shown nor sent, and is not needed here")
    return given


def _optional(question: str, otherwise: str, known: str) -> str:
    """Ask for something that need not be set. Raises as `_plain`."""
    given = _plain(f"{question} ({'-' if known else 'empty'}: {otherwise})", known)
    return "" if given == "-" else given


def _is_of_gateway(text: str) -> bool:
    """Whether a password is a gateway's token: other tokens may be passwords."""
    with suppress(BridgeError):
        return bool(Token.parse(text).role)
    return False


# The command


def _search(seconds: float, interfaces: Sequence[str]) -> FoundLater:
    """Look for gateways while the first questions are asked. A daemon thread does not outlive the program."""
    found: FoundLater = Future()

    def work() -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # Ctrl-C must end the reading of an answer
        try:
            found.set_result(asyncio.run(discover(seconds, interfaces)))
        except Exception as problem:  # noqa: BLE001 - whoever asks for the result gets it
            found.set_exception(problem)

    Thread(target=work, name="search", daemon=True).start()
    return found


def _ask_all(
    draft: SettingsDraft, file: SettingsFile, interfaces: Sequence[str], timing: CommandTiming, *, show: bool
) -> None:
    """Ask everything, or what is to be changed of a file that has settings. Raises SetupAborted and InputEnded."""
    has_some = any(draft.sections.get(name) for name in TOPIC_SECTIONS)
    wanted = {*choose(draft, file.path)} if has_some else {*TOPICS}
    if show or in_container():
        wanted.discard("page")  # compose.yaml has its port
    elif "page" in wanted and not all(map(find_spec, ("prometheus_client", "uvicorn"))):
        wanted.discard("page")
        draft.report.note("page", f"its packages are missing; this installs them: {install_command('web')}")
    if {"token", "gateway"} & wanted:
        search = _search(timing.announcement, interfaces)
        if find_spec("zeroconf") is None:
            text = f"zeroconf, to look for gateways, is missing; this installs it: {install_command('discover')}"
            draft.report.note("search", text)
        elif "gateway" in wanted:
            print("Looking for gateways in this network meanwhile ...", flush=True)
        GatewayQuestions(draft, search, timing).ask(wanted)
    OtherQuestions(draft, timing).ask(wanted)


def run(
    settings: Settings,
    output: str,
    interfaces: Sequence[str],
    *,
    show: bool,
    timing: CommandTiming = DEFAULT_TIMING,
) -> int:
    """Run the command; with `show`, print the settings, secrets included, instead of writing a file.

    Raises:
        BadSetting: the file can't be written.
    """
    file, report = SettingsFile(Path(output)), Report(words=in_words)
    known = {} if show else file.read()
    if not show:
        file.require_writable()
    draft = SettingsDraft(report, known)
    draft.settings()
    configure_log(LogSettings(level="ERROR", format=settings.log.format))
    problem = ""
    try:
        with unseen():
            _ask_all(draft, file, interfaces, timing, show=show)
    except SetupAborted as end:
        problem = f"{end}: start `{PROGRAM} setup` again when you know one; you need not enter again what works"
    except InputEnded:
        return _stopped("no more answers: nothing was written", EXIT_CONFIGURATION)
    except KeyboardInterrupt:
        return _stopped("nothing was written", EXIT_STOPPED)
    if show:
        print("\nThe environment for a container; it holds secrets:\n")
        print(changed_environment("", draft.sections), end="")
    else:
        file = _write(draft, known, file)
    if problem:
        return _stopped(problem, EXIT_CONFIGURATION)
    return 0 if show else _check(draft.settings(), file, timing, existed=bool(known))


def _write(draft: SettingsDraft, known: Sections, file: SettingsFile) -> SettingsFile:
    """Write what works, if that is more than was `known`. Returns the file that has it."""
    report = draft.report
    if filled(draft.sections) == filled(known):
        report.section("Nothing was written")
        return file
    file = file.write({name: draft.sections.get(name, {}) for name in TOPIC_SECTIONS})
    report.section(f"Written to {file.path}, readable only by its owner")
    twice = sorted({*filled(draft.sections)} & {name.upper() for name in os.environ})
    if twice and not in_container():  # there, the environment comes from this file
        print(f"But the environment sets {', '.join(twice)}, too, which counts more: remove it there.")
    return file


def _check(settings: Settings, file: SettingsFile, timing: CommandTiming, *, existed: bool) -> int:
    print("\nA first check, as by `iqgateway2mqtt check`:", flush=True)
    try:
        code = check.run(settings, None, accept_key=False, timing=timing, places=False)
    except KeyboardInterrupt:
        return _stopped(f"the settings are in {file.path}", EXIT_STOPPED)
    print(f"\n{'When that is solved' if code else 'Now'}: {next_command(file.path, existed=existed)}")
    return 0


def _stopped(text: str, code: int) -> int:
    print(f"\n{PROGRAM}: {text}", file=sys.stderr)
    return code
