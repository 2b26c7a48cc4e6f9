"""The commands of `iqgateway2mqtt`."""

import argparse
import importlib
import ipaddress
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from bridge import __version__
from bridge.commands.codes import CONFIGURATION, STOPPED
from bridge.commands.manual import teach
from bridge.config import LAST_PORT, load
from bridge.model import BadSetting
from bridge.simulator import NAMES

SHELLS = ("bash", "zsh", "fish")
LONGEST = 3600
"""Seconds that somebody may want to listen for gateways."""


def parser() -> argparse.ArgumentParser:
    main = argparse.ArgumentParser(
        prog="iqgateway2mqtt",
        description="Enphase IQ Gateway to MQTT, with Home Assistant discovery.",
    )
    main.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = main.add_subparsers(dest="command", required=True, metavar="command")
    commands.add_parser("run", help="the service: poll the gateway and publish until stopped")
    commands.add_parser(
        "health", help="ask the running service whether it is alive: for a container's health check"
    )
    commands.add_parser("once", help="poll once and print what would be published")
    _add_inspections(commands)
    _add_beginnings(commands)
    demo = commands.add_parser("demo", help="a simulated home, a broker and the bridge; nothing to configure")
    demo.add_argument("--mqtt", metavar="URL", help="use this broker, such as mqtt://user:password@host:1883")
    simulate = commands.add_parser("simulate", help="only the simulated gateway, or a captured one, on a port")
    simulate.add_argument("capture", nargs="?", type=Path, metavar="CAPTURE", help="a capture to play back")
    simulate.add_argument("--host", default="127.0.0.1", help="address to listen on (default %(default)s)")
    simulate.add_argument("--port", type=_port, default=8443, help="port to listen on (default %(default)s)")
    for command in (demo, simulate):
        command.add_argument("--home", choices=NAMES, default="three-phase", help="default %(default)s")
    completion = commands.add_parser("completion", help="print what lets a shell complete these commands")
    completion.add_argument("shell", choices=SHELLS)
    teach(main, commands)
    return main


def _add_inspections(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    check = commands.add_parser("check", help="tell step by step what works and what does not")
    check.add_argument("--accept-key", action="store_true", help="trust the TLS key that the gateway shows now")
    token = commands.add_parser("token", help="show the gateway's token, get one by the account, or paste one")
    token.add_argument("action", choices=("show", "get", "paste"), help="paste reads it from standard input")
    capture = commands.add_parser("capture", help="all answers of the gateway, redacted, in a zip for a bug report")
    capture.add_argument("--output", metavar="FILE", help="the zip to write")
    for command in (check, token, capture):
        command.add_argument("--gateway", metavar="HOST", help="which gateway, where several are configured")


def _add_beginnings(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    discover = commands.add_parser("discover", help="find the gateways of this network")
    discover.add_argument("--seconds", type=_seconds, default=4.0, help="how long to listen (default %(default)s)")
    setup = commands.add_parser("setup", help="ask for what is needed, try each answer, and write the settings")
    setup.add_argument("--output", default=".env", metavar="FILE", help="FILE.toml, or lines as in .env (default)")
    setup.add_argument("--show", action="store_true", help="print the environment for a container; write nothing")
    for command in (discover, setup):
        command.add_argument(
            "--interface",
            action="append",
            type=_address,
            default=[],
            metavar="ADDRESS",
            dest="interfaces",
            help="listen there only",
        )


def _port(text: str) -> int:
    if not (text.isdecimal() and int(text) <= LAST_PORT):
        raise argparse.ArgumentTypeError(f"{text} is no port: 0 (any that is free) to {LAST_PORT}")
    return int(text)


def _seconds(text: str) -> float:
    with suppress(ValueError):
        if 0 < float(text) <= LONGEST:
            return float(text)
    raise argparse.ArgumentTypeError(f"{text} is no number of seconds up to {LONGEST}")


def _address(text: str) -> str:
    """zeroconf takes no names of interfaces."""
    with suppress(ValueError):
        return str(ipaddress.ip_address(text))
    raise argparse.ArgumentTypeError(f"{text} is no address of this machine, such as 192.168.1.5")


def _with_settings(module: str, options: Mapping[str, object]) -> int:
    """The part of a command is imported only when it is called: a Pi in service needs no simulator."""
    try:
        settings = load()
        return int(importlib.import_module(f"bridge.commands.{module}").run(settings, **options))
    except BadSetting as problem:
        print(f"iqgateway2mqtt: {problem}", file=sys.stderr)
        return CONFIGURATION
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return STOPPED
    except BrokenPipeError:  # whoever reads our lines has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return STOPPED


def _with_extra(work: Callable[[], int], *, extra: str = "demo") -> int:
    try:
        return work()
    except ModuleNotFoundError as missing:
        print(f"iqgateway2mqtt: {missing.name} is missing: install 'iqgateway2mqtt[{extra}]'", file=sys.stderr)
    except (OSError, BadSetting) as problem:
        print(f"iqgateway2mqtt: {problem}", file=sys.stderr)
    return CONFIGURATION


def _demo(arguments: argparse.Namespace) -> int:
    from bridge.commands import demo  # noqa: PLC0415 - needs the demo extra

    return demo.run(arguments.home, arguments.mqtt)


def _simulate(arguments: argparse.Namespace) -> int:
    from bridge.commands import simulate  # noqa: PLC0415 - needs the demo extra

    return simulate.run(arguments.home, arguments.host, arguments.port, arguments.capture)


def _discover(arguments: argparse.Namespace) -> int:
    from bridge.commands import discover  # noqa: PLC0415 - needs the discover extra

    return discover.run(arguments.seconds, arguments.interfaces)


def _completion(shell: str) -> int:
    import shtab  # noqa: PLC0415 - needs the completion extra

    print(shtab.complete(parser(), shell))
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    given = parser().parse_args(arguments)
    match given.command:
        case "demo":
            return _with_extra(lambda: _demo(given))
        case "simulate":
            return _with_extra(lambda: _simulate(given))
        case "completion":
            return _with_extra(lambda: _completion(given.shell), extra="completion")
        case "discover":
            return _with_extra(lambda: _discover(given), extra="discover")
        case command:
            return _with_settings(command, {k: v for k, v in vars(given).items() if k != "command"})
