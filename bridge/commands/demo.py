"""`demo` runs a simulated home, a broker and the bridge; `simulate` only a simulated or captured gateway."""

import asyncio
import errno
import logging
import re
import shlex
import socket
import sys
import tempfile
import time
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit
from zoneinfo import available_timezones

from amqtt.broker import Broker as EmbeddedBroker
from amqtt.errors import BrokerError
from pydantic import ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource
from rich.console import Console
from rich.live import Live
from rich.text import Text

from bridge.commands.picture import INTO, OUT_OF, Picture
from bridge.commands.report import MAX_LINE_LETTERS, configure_log, plural
from bridge.commands.run import until_stopped
from bridge.model import BadSetting, Message, Priority, printable
from bridge.mqtt.connect import BROKER_PORTS
from bridge.service.bridge import Bridge
from bridge.service.status import BrokerStatus
from bridge.settings import LOOPBACK, VARIABLE_PREFIX, LogSettings, MqttSettings, Settings
from bridge.simulator import HOMES, PASSWORD, USER, LoggedRequest, Simulator
from bridge.simulator.house import zone_where
from bridge.simulator.replay import Replay
from bridge.simulator.serve import serve

DISCONNECT_MESSAGE = re.compile(r"client_connected_cb|StreamReaderProtocol\.connection_made")
"""What asyncio logs about amqtt when a client disconnects, in Python 3.12 and in 3.11."""
DEFAULT_PORT = 1883
START_HOUR = 10.0
"""Hour of the day at which the simulation starts: in the morning, so that the sun shines."""


def _free_port() -> int:
    """The default MQTT port if it is free, so that tools find the broker without a port; otherwise any free one."""
    for wanted in (DEFAULT_PORT, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((LOOPBACK, wanted))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise OSError("no free port on the loopback interface")


@asynccontextmanager
async def _embedded_broker() -> AsyncIterator[dict[str, str]]:
    """Run a small MQTT 3.1.1 broker during the block; yields the settings for it.

    It does not answer clients that speak MQTT 5.
    """
    try:
        address, running = await _started_broker()
    except BrokerError:  # another program has taken the port since it was found free
        address, running = await _started_broker()
    try:
        yield {"url": f"mqtt://{address}", "protocol": "3.1.1"}
    finally:
        await running.shutdown()


async def _started_broker() -> tuple[str, EmbeddedBroker]:
    address = f"{LOOPBACK}:{_free_port()}"
    config = {
        "listeners": {"default": {"type": "tcp", "bind": address}},
        "plugins": {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}},
    }
    running = EmbeddedBroker(config)
    await running.start()
    return address, running


REDRAW_S, MOST_WARNINGS = 0.25, 3
LINES_AFTER_END = 4
"""Lines of the terminal below the last picture: what is left behind, and the shell's prompt."""
STYLES = {f"{INTO} .*": "green", f"{OUT_OF} .*": "yellow", "(?m)^(WARNING|ERROR) .*": "red"}


class _Warnings(logging.Handler):
    """Keeps the newest lines of the log, for the picture: on the terminal they would be painted over."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: deque[str] = deque(maxlen=MOST_WARNINGS)

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(f"{record.levelname} {printable(record.getMessage(), MAX_LINE_LETTERS)}")


MAX_SHOWN_BODY = 4000
"""The most characters of a command that are shown."""


class Screen:
    """Shows the sent messages: as a picture on a terminal, otherwise as lines. Call `show` with each message.

    The picture has the terminal's other screen, so that it fits after each change of the terminal's size. At the
    end the last picture is printed on the usual screen.
    """

    def __init__(self, title: str, look_on: Sequence[str]) -> None:
        self._title, self._look_on = title, look_on
        self._picture, self._warnings, self._console = Picture(title, look_on), _Warnings(), Console()
        self._is_terminal = self._console.is_terminal and not self._console.is_dumb_terminal
        self._is_lost = False
        """Whether the output can't be written any more. That ends the demo, and its end must not fail, too."""

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Show what is sent during the block."""
        if not self._is_terminal:
            command = f"Watch from another terminal:  {' '.join(self._look_on)}\n" if self._look_on else ""
            print(f"{self._title}\n{command}Ctrl-C stops it.\n", flush=True)
            yield
            return
        if sys.stderr.isatty():
            logging.getLogger().handlers[:] = [self._warnings]
        try:
            with Live(console=self._console, screen=True, auto_refresh=False) as live:
                async with asyncio.TaskGroup() as tasks:
                    redrawing = tasks.create_task(self._redraw(live))
                    yield
                    redrawing.cancel()
        finally:
            self._console.print(self._painted(ended=True), crop=False)

    def show(self, message: Message) -> None:
        self._picture.add(message)
        if not self._is_terminal and message.priority > Priority.CLEANUP and not self._is_lost:
            self._is_lost = True
            print(message.topic, message.payload, flush=True)
            self._is_lost = False

    async def _redraw(self, live: Live) -> None:
        while True:
            live.update(self._painted(), refresh=True)
            await asyncio.sleep(REDRAW_S)

    def _painted(self, *, ended: bool = False) -> Text:
        width, height = self._console.size
        room = height - LINES_AFTER_END if ended else height
        lines = self._picture.lines(width, room, warnings=self._warnings.lines, ended=ended)
        text = Text("\n".join(lines), no_wrap=True, overflow="crop")
        for pattern, style in STYLES.items():
            text.highlight_regex(pattern, style)
        return text


class DemoSettings(Settings):
    """Settings that ignore the environment and files of this machine."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003 - the signature is pydantic's
        init_settings: PydanticBaseSettingsSource,
        *_: PydanticBaseSettingsSource,
        **__: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings,)


def _cloud_urls(cloud: str) -> dict[str, str]:
    """The settings for a simulated cloud at `host:port`."""
    return {
        "login_url": f"http://{cloud}/login/login.json",
        "token_url": f"http://{cloud}/tokens",
        "entrez_url": f"http://{cloud}/entrez-auth-token",
    }


def _settings(
    gateway: str,
    cloud: str,
    broker: dict[str, str],
    state_dir: Path,
    *,
    secure: bool,
    allow: str,
    instance: str | None,
) -> Settings:
    account = {"username": USER, "password": PASSWORD} if secure else {}
    try:
        return DemoSettings(
            gateway={"host": gateway, **account},
            cloud=_cloud_urls(cloud),
            mqtt=broker,
            control={"allow": allow},
            poll={"profile": "live", "inverters": 60},
            state_dir=state_dir,
            instance=instance,
            timezone=_timezone(),
        )
    except ValidationError as error:
        problem = error.errors()[0]["msg"].removeprefix("Value error, ")
        option = "--allow" if error.errors()[0]["loc"][:1] == ("control",) else "--mqtt"
    raise BadSetting(f"{option}: {problem}")  # outside of the handler: the URL may hold a password


@asynccontextmanager
async def _simulated_home(name: str, personality: str | None) -> AsyncIterator[tuple[str, str, bool]]:
    """Run a simulated home; yields the gateway's URL, the cloud's address, and whether a token is needed."""
    simulator = Simulator(name, personality=personality, start_hour=START_HOUR)
    secure = simulator.home.secure
    async with serve(simulator, tls=secure) as address, serve(simulator, tls=False) as cloud:
        yield f"{'https' if secure else 'http'}://{address}", cloud, secure


def _timezone() -> str | None:
    """The time zone whose days a simulated home has; `None` where this machine knows no zones."""
    return zone if (zone := zone_where(START_HOUR, time.time())) in available_timezones() else None


def _look_on(mqtt: MqttSettings) -> Sequence[str]:
    """The parts of a command that shows all topics; none for WebSocket, which mosquitto_sub does not speak.

    Its user and password are those that were given to this command.
    """
    url = urlsplit(mqtt.each[0].url)
    if url.scheme in {"ws", "wss"}:
        return []
    if url.scheme == "unix":
        parts = ["mosquitto_sub", f"--unix {shlex.quote(url.path)}"]
    else:
        parts = ["mosquitto_sub", f"-h {url.hostname}", f"-p {url.port or BROKER_PORTS[url.scheme]}"]
    if url.scheme == "mqtts":
        parts += ["--tls-use-os-certs"]
    if mqtt.username is not None:
        parts += [f"-u {shlex.quote(mqtt.username)}"]
    if mqtt.password is not None:
        parts += [f"-P {shlex.quote(mqtt.password.get_secret_value())}"]
    return [*parts, f"-t '{mqtt.base_topic}/#'", "-v"]


def _left_behind(broker: BrokerStatus, mqtt: str | None, serial: str) -> str:
    """What is left of the demo, for a person who wants to know."""
    if mqtt is None:
        return "its broker has stopped with it, and nothing is left behind"
    if not broker.sent:
        return f"{broker.address} was never reached, and nothing is left behind"
    if not broker.topics:
        return f"all its topics and devices are removed from {broker.address}, and nothing is left behind"
    return (
        f"{broker.address} did not take all removals, and {plural(broker.topics, 'topic')} may be left there: "
        f"`iqgateway2mqtt clean --gateway {serial} --yes` removes the values and devices"
    )


async def _demo(home: str, personality: str | None, allow: str, mqtt: str | None) -> None:
    async with AsyncExitStack() as stack:
        state_dir = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="iqgateway2mqtt-demo-")))
        gateway, cloud, secure = await stack.enter_async_context(_simulated_home(home, personality))
        broker = {"url": mqtt} if mqtt else await stack.enter_async_context(_embedded_broker())
        instance = "demo" if mqtt else None
        settings = _settings(gateway, cloud, broker, state_dir, secure=secure, allow=allow, instance=instance)
        screen = Screen(f"The simulated home {home} at {gateway}", _look_on(settings.mqtt))
        bridge = Bridge(settings, on_sent=screen.show, remove_at_end=mqtt is not None)
        try:
            async with screen.open():
                await bridge.run()
        except asyncio.CancelledError:
            left = _left_behind(bridge.status(details=False).broker, mqtt, HOMES[home].serial)
            print(f"stopped: {left}", file=sys.stderr)
            raise


def run(home: str, personality: str | None, allow: str, mqtt: str | None) -> int:
    """Run the command until Ctrl-C.

    Raises:
        BadSetting: `mqtt` is no address of a broker, or `allow` has an unknown group.
        OSError: there is no free port.
    """
    configure_log(LogSettings(level="WARNING"))
    logging.getLogger("amqtt").setLevel(logging.CRITICAL)
    logging.getLogger("transitions").setLevel(logging.CRITICAL)
    # amqtt logs this when a client disconnects while it is being served
    logging.getLogger("asyncio").addFilter(lambda record: not DISCONNECT_MESSAGE.search(record.getMessage()))
    asyncio.run(until_stopped(_demo(home, personality, allow, mqtt)))
    return 0


# simulate


async def _serve_alone(app: Simulator | Replay, name: str, host: str, port: int, *, secure: bool) -> None:
    """Serve the gateway and its cloud until cancelled, and print settings for them.

    Each run has a state folder of its own, which is removed at the end: a gateway that is simulated again has
    another TLS key, which a bridge that knows the earlier one would refuse.
    """
    async with serve(app, tls=secure, host=host, port=port) as address, serve(app, tls=False) as cloud:
        with tempfile.TemporaryDirectory(prefix="iqgateway2mqtt-simulate-") as state_dir:
            url = f"{'https' if secure else 'http'}://{address}"
            print(f"{name}: gateway {app.serial} at {url}, its cloud at http://{cloud}")
            common = {"GATEWAY__HOST": url, "STATE_DIR": state_dir}
            if isinstance(app, Simulator) and (zone := _timezone()):
                common["TIMEZONE"] = zone
            if not secure:
                _print_settings(common, "")
            else:
                _print_settings({**common, "GATEWAY__TOKEN": app.token()}, ", with a token")
                account = {"GATEWAY__USERNAME": USER, "GATEWAY__PASSWORD": PASSWORD}
                urls = {f"CLOUD__{name.upper()}": value for name, value in _cloud_urls(cloud).items()}
                _print_settings({**common, **account, **urls}, ", with an account in place of the token")
            print(
                "\nPaste one of these. `iqgateway2mqtt once` then prints its values. `iqgateway2mqtt run` needs a"
            )
            print("broker, too (BRIDGE_MQTT__URL). Ctrl-C stops the simulation.", flush=True)
            await asyncio.Event().wait()


def _print_settings(settings: Mapping[str, str], way: str) -> None:
    """Print settings for a file of environment variables, and for a shell."""
    lines = [f"{VARIABLE_PREFIX}{name}={shlex.quote(value)}" for name, value in settings.items()]
    print(f"\nSettings for a file named .env{way}:\n", *lines, sep="\n")
    print(f"\nThe same for a shell{way}:\n", *(f"export {line}" for line in lines), sep="\n")


def _print_write(seen: LoggedRequest) -> None:
    """Print a command that the simulated gateway has received."""
    body = printable(seen.body.decode(errors="replace"), MAX_SHOWN_BODY)
    print(f"{seen.method} {seen.path} {body}: {seen.status or 'no answer'}", flush=True)


async def _simulate(home: str, personality: str | None, host: str, port: int, capture: Path | None) -> None:
    if capture is None:
        simulator = Simulator(home, personality=personality, start_hour=START_HOUR, on_write=_print_write)
        work = _serve_alone(simulator, home, host, port, secure=simulator.home.secure)
    elif personality is not None:
        raise BadSetting("--personality: a capture is only played back, and takes no commands")
    else:
        replay = Replay(capture)
        work = _serve_alone(replay, f"{capture.name}, firmware {replay.firmware}", host, port, secure=replay.secure)
    await until_stopped(work)


def run_simulator(home: str, personality: str | None, host: str, port: int, capture: Path | None = None) -> int:
    """Run the command until Ctrl-C.

    Raises:
        OSError: it is not possible to listen there, or the capture can't be read.
        BadSetting: the port is in use, the capture is not one, or a personality is given for it.
    """
    try:
        asyncio.run(_simulate(home, personality, host, port, capture))
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise BadSetting(f"--port: {host}:{port} is in use: name another port, or 0 for any free one") from None
        raise
    return 0
