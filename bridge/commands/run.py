"""`run`: the service; `once`: polls everything once and prints what would be published."""

import asyncio
import faulthandler
import importlib
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from typing import NamedTuple

from bridge.commands.picture import flows
from bridge.commands.report import (
    EXIT_CONFIGURATION,
    EXIT_REFUSED,
    EXIT_UNAVAILABLE,
    FAILING_ADVICE,
    Report,
    code_of,
    configure_log,
    install_command,
    plural,
)
from bridge.gateway.errors import Overloaded, Starting
from bridge.model import (
    BadSetting,
    BridgeError,
    Message,
    Priority,
    Rejected,
    SourceName,
    Unsupported,
)
from bridge.outbox import DISCOVERY_PRIORITIES
from bridge.service.assembly import make_homes, make_poller
from bridge.service.bridge import Bridge, collect_seldom
from bridge.service.sources import SourceState
from bridge.service.status import GatewayStatus, Status
from bridge.settings import GatewaySettings, Settings, homes, load, nothing_set
from bridge.store import Store

LOG = logging.getLogger(__name__)
STDIN, STDERR = 0, 2
STATUS_PERIOD_S = 5.0
"""Longest time between two checks of the bridge's status."""
FEEDS_PER_TIMEOUT = 3
"""How often the watchdog is fed within its timeout; with two, a busy machine could miss it."""
MAX_STATUS_LETTERS = 400
MAX_MICROSECONDS_DIGITS = 18
MICROSECONDS_PER_S = 1_000_000
MAX_FAULTS_TOLD = 3
"""Different errors of one gateway that the summary of `once` names."""


class Supervisor:
    """Reports readiness, status and liveness to systemd by sd_notify(3).

    Without NOTIFY_SOCKET in the environment, all methods do nothing.
    """

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        self._address = _address(environment.get("NOTIFY_SOCKET", ""))
        ours = environment.get("WATCHDOG_PID", "") in {"", str(os.getpid())}
        self._watchdog = _seconds(environment.get("WATCHDOG_USEC", "")) if ours else None
        self._pause = (
            min(STATUS_PERIOD_S, self._watchdog / FEEDS_PER_TIMEOUT) if self._watchdog else STATUS_PERIOD_S
        )

    async def watch(self, status: Callable[[], Status]) -> None:
        """Report readiness, then each changed status; feed the watchdog until a part of the bridge is stuck."""
        self.ready()
        told, was_alive = "", True
        while True:
            now = status()
            if self._watchdog and not now.stuck:
                self._notify("WATCHDOG=1")
            if now.summary != told:
                told = now.summary
                self._notify(f"STATUS={_line(told)}")
            if was_alive and now.stuck:
                LOG.error("stuck: %s; only a restart helps", ", ".join(now.stuck))
            was_alive = not now.stuck
            await asyncio.sleep(self._pause)

    def ready(self) -> None:
        self._notify("READY=1")

    def reloading(self) -> None:
        self._notify("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self) -> None:
        self._notify("STOPPING=1", "STATUS=stopping")

    def _notify(self, *lines: str) -> None:
        """Send a notification. It never blocks and ignores errors, because the bridge works without systemd too."""
        if self._address is None:
            return
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)
            sock.sendto("\n".join(lines).encode(), self._address)


def _address(given: str) -> str | None:
    """The socket's address: a path, or an abstract name after `@`. Other kinds are only for virtual machines."""
    if given.startswith("@"):
        return f"\0{given[1:]}"
    return given if given.startswith("/") else None


def _seconds(microseconds: str) -> float | None:
    known = microseconds.isdecimal() and len(microseconds) <= MAX_MICROSECONDS_DIGITS and int(microseconds)
    return int(microseconds) / MICROSECONDS_PER_S if known else None


def _line(text: str) -> str:
    return " ".join(text.split())[:MAX_STATUS_LETTERS]


def require_listener(settings: Settings) -> None:
    """Check at the start that the HTTP listener can be used if it is configured.

    Raises:
        BadSetting: a package that the listener needs is not installed.
    """
    if settings.http.listen is None:
        return
    try:
        importlib.import_module("bridge.web")
    except ModuleNotFoundError as missing:
        package = (missing.name or "").partition(".")[0]
        raise BadSetting(
            f"BRIDGE_HTTP__LISTEN: {package} is missing; this installs it: {install_command('web')}"
        ) from None


async def run_with_listener(settings: Settings, bridge: Bridge) -> None:
    """Run the bridge and, if configured, its HTTP listener until cancelled."""
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(bridge.run(), name="bridge")
        if settings.http.listen is not None:
            from bridge.web import listen  # noqa: PLC0415 - needs the web extra

            tasks.create_task(listen(settings.http, bridge.status), name="listener")


async def until_stopped(
    work: Coroutine[object, object, None], stopping: Callable[[], object] = lambda: None
) -> None:
    """Run `work` until SIGTERM or SIGINT; then call `stopping`, cancel the work and wait for its end."""
    task = asyncio.ensure_future(work)

    def stop() -> None:
        stopping()
        task.cancel()

    with suppress(asyncio.CancelledError), _on(stop, signal.SIGTERM, signal.SIGINT):
        await task


@contextmanager
def _on(action: Callable[[], object], *signals: signal.Signals) -> Iterator[None]:
    """Handle these signals, also those that came earlier or were blocked by the program that started this one."""
    loop = asyncio.get_running_loop()
    for number in signals:
        loop.add_signal_handler(number, action)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
    try:
        yield
    finally:
        for number in signals:
            loop.remove_signal_handler(number)


class Service:
    """Runs a bridge, and replaces it by a new one when the settings and token files are read again."""

    def __init__(self, settings: Settings, supervisor: Supervisor) -> None:
        self._settings, self._supervisor = settings, supervisor
        self._store = Store(settings.state_dir)
        self._bridge = Bridge(settings, store=self._store)
        self._reload_requested = asyncio.Event()

    def reload(self) -> None:
        """Ask the service to read the settings again soon; returns at once."""
        self._reload_requested.set()

    async def run(self) -> None:
        """Run one bridge after the other until cancelled."""
        while True:
            await self._serve(self._bridge)

    async def _serve(self, bridge: Bridge) -> None:
        """Run this bridge until there are new settings; then stop it as at the end of the service."""
        async with asyncio.TaskGroup() as tasks:
            parts = [
                tasks.create_task(run_with_listener(self._settings, bridge), name="bridge"),
                tasks.create_task(self._supervisor.watch(lambda: bridge.status(details=False)), name="supervisor"),
                tasks.create_task(collect_seldom(), name="garbage"),
            ]
            await self._wait_for_settings()
            for part in parts:
                part.cancel()

    async def _wait_for_settings(self) -> None:
        """Wait for a reload with valid settings; invalid settings are logged and ignored."""
        while True:
            await self._reload_requested.wait()
            self._reload_requested.clear()
            self._supervisor.reloading()
            try:
                return self._use(load())
            except BadSetting as problem:
                LOG.error("the new settings can't be used, the old ones are kept: %s", problem)  # noqa: TRY400 - one line
                self._supervisor.ready()

    def _use(self, settings: Settings) -> None:
        """Make a bridge with the new settings.

        The store is kept unless the state folder changes, because it also holds state that could not be written.
        """
        require_listener(settings)
        store = self._store if settings.state_dir == self._settings.state_dir else Store(settings.state_dir)
        self._bridge = Bridge(settings, store=store)
        self._settings, self._store = settings, store
        configure_log(settings.log)
        LOG.info("settings and tokens were read again: restarting with them")


async def _run(settings: Settings) -> None:
    supervisor = Supervisor()
    service = Service(settings, supervisor)
    terminal = os.isatty(STDIN)

    def on_hangup() -> None:
        """Reload; but stop if the terminal was closed, which sends the same signal."""
        if terminal and not os.isatty(STDIN):
            signal.raise_signal(signal.SIGTERM)
        else:
            service.reload()

    with _on(on_hangup, signal.SIGHUP):
        await until_stopped(service.run(), supervisor.stopping)


def run(settings: Settings) -> int:
    """Run the service until it is stopped.

    Raises:
        BadSetting: the HTTP listener is configured but not installed.
    """
    require_listener(settings)
    configure_log(settings.log)
    if text := nothing_set():
        LOG.info(text)
    faulthandler.enable(STDERR)  # systemd's watchdog sends SIGABRT: the log then shows where the program hung
    asyncio.run(_run(settings))
    return 0


# once


class Polled(NamedTuple):
    """What a round of polls has brought of one gateway: its status, its sources without an answer, its problem."""

    status: GatewayStatus
    errors: Mapping[SourceName, BridgeError]
    problem: str | None


async def poll_once(settings: Settings) -> tuple[Mapping[str, Message], Sequence[Polled]]:
    """Poll each gateway once: those of one home at the same time, since only then their powers add up.

    Returns the messages that would be published, by topic, and how each gateway is doing.
    """
    tree: dict[str, Message] = {}
    store = Store(settings.state_dir)

    def publish(messages: Iterable[Message]) -> None:
        tree.update((message.topic, message) for message in messages if message.retain)

    shared = make_homes(settings, store, publish)

    async def poll(gateway: GatewaySettings) -> Polled:
        await shared.open(gateway)
        poller = make_poller(settings, gateway, store, publish, on_refresh=partial(shared.refresh, gateway))
        shared.add(gateway, poller)
        try:
            errors = await poller.once()
            status = GatewayStatus.of(poller, datetime.now(UTC), details=True)
            return Polled(status, errors, poller.sources.access_problem or status.problem)
        finally:
            await poller.aclose()

    polled: list[Polled] = []
    groups = homes(settings.all_gateways)
    shared.set_gateways(settings.all_gateways, settings.every_gateway)
    for gateways in (*groups.values(), *([one] for one in settings.all_gateways if one.home is None)):
        polled += await asyncio.gather(*map(poll, gateways))
    return tree, polled


def _is_shown(message: Message, which: str, *, as_documents: bool) -> bool:
    """Whether `once` prints this message. `as_documents`: documents stand for the values, which have no topics."""
    is_discovery = message.priority in DISCOVERY_PRIORITIES
    is_value = (message.content_type is not None) == as_documents and message.priority is not Priority.AVAILABILITY
    match which:
        case "site":
            return is_value and message.priority is Priority.SITE
        case "values":
            return is_value and not is_discovery
        case "topics":
            return not is_discovery
        case "discovery":
            return is_discovery
        case _:
            return True


def _tell_gateway(report: Report, polled: Polled, tree: Mapping[str, Message]) -> None:
    """Print five lines about one gateway: what has answered, what has not, and what to do."""
    status, errors, problem = polled
    if status.known:
        report.ok("gateway", f"{status.serial}, firmware {status.firmware or 'unknown'}, at {status.address}")
    else:
        report.fact("gateway", f"the one at {status.address} has not told its serial number")
    names = [source.name for source in status.sources if source.state == SourceState.GOOD.value]
    report.fact("answered", f"{plural(len(names), 'endpoint')}: {', '.join(names)}" if names else "nothing")
    code = max(map(code_of, errors.values()), default=0)
    texts = {name.value: str(errors[name]) for name in sorted(errors, key=lambda name: -code_of(errors[name]))}
    by_text = {text: [name for name in texts if texts[name] == text] for text in texts.values()}
    told = [f"{', '.join(names)}: {text}" for text, names in by_text.items()]
    more = f"; and {len(told) - MAX_FAULTS_TOLD} more" if len(told) > MAX_FAULTS_TOLD else ""
    if told:
        report.outcome("no answer", "; ".join(told[:MAX_FAULTS_TOLD]) + more, code)
    else:
        report.ok("no answer", "none of those that were asked")
    if any(isinstance(error, Starting | Overloaded) for error in errors.values()):
        report.fact("to do", "try again in a minute")
    elif not status.known or code in {EXIT_REFUSED, EXIT_CONFIGURATION}:
        report.fact("to do", "what the line above says; `iqgateway2mqtt check` shows each step")
    elif code:
        report.fact("to do", f"`iqgateway2mqtt run` publishes what answers; {FAILING_ADVICE}")
    else:
        report.fact("to do", problem or "nothing; `iqgateway2mqtt run` publishes these values")
    report.fact("site", _flows_below(f"/{status.serial}/site/", tree))


def _flows_below(place: str, tree: Mapping[str, Message]) -> str:
    """The flows whose topics have this part, in one line."""
    parts = (topic.partition(place) for topic in tree)
    values = {rest: tree[head + mark + rest].payload for head, mark, rest in parts if mark}
    return ", ".join(map(str, flows(values))) or "not known"


def run_once(settings: Settings, shown: str) -> int:
    """Print `topic payload` lines, and a summary on standard error. Returns the exit code of the worst failure.

    `shown` is what is printed: `values`, `site`, `topics`, `discovery`, or `all` without a summary.
    """
    level = "DEBUG" if settings.log.level == "DEBUG" else "ERROR"
    configure_log(settings.log.model_copy(update={"level": level}))
    tree, polled = asyncio.run(poll_once(settings))
    as_documents = settings.mqtt.payload == "json"
    messages = [tree[topic] for topic in sorted(tree) if tree[topic].payload]
    printed = [message for message in messages if _is_shown(message, shown, as_documents=as_documents)]
    if shown != "all":
        printed.sort(key=lambda message: message.priority is not Priority.SITE)
    for message in printed:
        print(message.topic, message.payload)
    sys.stdout.flush()  # where the output can't be written, there is no summary of it
    errors = [error for one in polled for error in one.errors.values()]
    if shown == "all":
        for text in dict.fromkeys(map(str, errors)):
            print(f"iqgateway2mqtt: {text}", file=sys.stderr)
    else:
        report = Report(sys.stderr)
        for one in polled:
            _tell_gateway(report, one, tree)
        for home in homes(settings.all_gateways):
            report.fact("home", f"{home}: {_flows_below(f'/home/{home}/', tree)}")
        text = f"{len(printed)} of {plural(len(messages), 'topic')}; `iqgateway2mqtt once --all` prints all"
        report.fact("printed", f"{text}. Nothing was sent to the broker")
    failures = [error for error in errors if not isinstance(error, Unsupported)]
    if any(isinstance(error, Rejected) for error in failures):
        return EXIT_REFUSED
    return EXIT_UNAVAILABLE if failures else 0
