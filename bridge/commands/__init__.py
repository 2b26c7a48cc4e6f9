"""The command line of `iqgateway2mqtt`: its parser, its help texts, and the call of each command."""

import argparse
import importlib
import ipaddress
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from bridge import __version__
from bridge.commands.report import (
    EXIT_CONFIGURATION,
    EXIT_USAGE,
    OutputLost,
    give_up_output,
    guard_output,
    install_command,
)
from bridge.model import DAY_S, HOUR_S, BadSetting
from bridge.settings import MAX_PORT, load, topic_name
from bridge.simulator import HOME_NAMES, PERSONALITY_NAMES

if TYPE_CHECKING:
    from bridge.commands.session import CommandTiming

FIRST_STEPS = """\
first steps:
  iqgateway2mqtt demo                  try it with a simulated home; nothing to configure
  iqgateway2mqtt setup                 answer a few questions; each answer is checked at once
  iqgateway2mqtt check                 show what works, what does not, and what to do about it
  iqgateway2mqtt run                   the service

Settings come from the environment (BRIDGE_...), .env, secret files and the TOML file named by
BRIDGE_CONFIG. Required are only BRIDGE_GATEWAY__HOST, BRIDGE_GATEWAY__TOKEN (or an Enphase
account), and BRIDGE_MQTT__URL.

exit codes:
  0    done; `run`, `demo` and `simulate`: stopped, by Ctrl-C, too
  1    `set`: the gateway does not do it, or no longer
  2    wrong command line
  69   no answer, or the output can't be written
  77   refused
  78   wrong setting
  130  stopped by Ctrl-C, or by the end of the program that reads the output
"""
DESCRIPTIONS: Mapping[str, str] = {
    "run": """\
        Polls the gateways and publishes their values until it is stopped. It keeps running while gateway,
        broker or cloud are unreachable. SIGTERM and SIGINT stop it. SIGHUP makes it read its settings and
        tokens again; if they are wrong, it logs an error and keeps the old ones.""",
    "once": """\
        Polls everything once and prints topics and values, those of `site` first, and then a summary on
        standard error. Nothing is sent to the broker, so it can be used while a bridge runs.""",
    "health": """\
        Requests /healthz at the address in BRIDGE_HTTP__LISTEN. Exits with 0 if the service is alive, else
        with 69.

        example: BRIDGE_HTTP__LISTEN=8080 iqgateway2mqtt health""",
    "check": """\
        Checks each step from the gateway's name to the broker's access rules, asks each endpoint once, and
        says what to do where a step fails. It stores only a TLS key that it sees for the first time, and a
        token that it got with the account.""",
    "token": """\
        A token of a system owner is valid for a year. No token is ever printed.

        example: iqgateway2mqtt token paste < token.txt""",
    "capture": """\
        The zip can be played back with `iqgateway2mqtt simulate FILE`. Serial numbers, names, addresses and
        secrets are replaced; look at the files before you send them.""",
    "clean": """\
        Lists what former settings, or gateways that left the settings, have left at the broker: topics below
        another base topic, discovery of another prefix or form, and all of such a gateway. Where a bridge
        is running, its topics are left alone. Only --yes removes anything.

        example: iqgateway2mqtt clean --base enphase --yes""",
    "set": """\
        Asks the running bridge over the broker, and prints what becomes of the command. BRIDGE_CONTROL__ALLOW
        has to allow it. Needs only the settings of the broker. Exits with 0 if the value is in force, or if
        the gateway does not tell; with 1 if it is ignored, overridden or superseded; with 77 if it is
        refused; and with 69 if it has failed or expired, or no bridge answers. docs/control.md lists all
        targets.

        example: iqgateway2mqtt set storage/settings/reserve 30 --dry-run
        example: iqgateway2mqtt set relay/nc1/state open""",
    "demo": """\
        With --mqtt, the devices appear in your Home Assistant; they are removed at the end. With --allow, you
        can try commands where nothing can happen.

        example: iqgateway2mqtt demo --mqtt mqtt://user:password@192.168.1.10:1883
        example: iqgateway2mqtt demo --home split-phase --allow all,grid --personality ignores""",
    "simulate": """\
        Prints the settings for a bridge that reads it, and each command that it receives. It also simulates
        Enphase's cloud. The home split-phase has everything that can be controlled but AC Batteries.

        example: iqgateway2mqtt simulate --home split-phase --personality cloud-restores""",
    "setup": """\
        Each answer is checked at once, and only what works is written. Secrets are not shown. If the file is
        there already, single answers can be changed; its other lines stay.

        example: sudo iqgateway2mqtt setup --output /etc/iqgateway2mqtt/settings.toml""",
    "discover": """\
        Uses mDNS, which works only within one network and not in most containers.""",
    "completion": """\
        Prints a script for tab completion in your shell.

        bash: iqgateway2mqtt completion bash > ~/.local/share/bash-completion/completions/iqgateway2mqtt
        zsh:  iqgateway2mqtt completion zsh > a folder of $fpath/_iqgateway2mqtt
        fish: iqgateway2mqtt completion fish > ~/.config/fish/completions/iqgateway2mqtt.fish""",
}


ONCE_SHOWS: Mapping[str, str] = {
    "site": "print only the flows of solar, grid, battery, generator and home",
    "topics": "print documents, states and availability, too",
    "discovery": "print only the messages for Home Assistant's discovery",
    "all": "print every message, and no summary",
}
SHELLS = ("bash", "zsh", "fish")
MAX_LISTEN_S = HOUR_S
"""Largest value of `discover --seconds` and `set --timeout`."""


def parser() -> argparse.ArgumentParser:
    main = argparse.ArgumentParser(
        prog="iqgateway2mqtt",
        description="Enphase IQ Gateway to MQTT, with Home Assistant discovery.",
    )
    main.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = main.add_subparsers(dest="command", required=True, metavar="command")
    commands.add_parser("run", help="the service: poll the gateway and publish until stopped")
    commands.add_parser(
        "health", help="ask the running service whether it is alive; meant for a container's health check"
    )
    once = commands.add_parser("once", help="poll once and print what would be published")
    which = once.add_mutually_exclusive_group()
    for name, text in ONCE_SHOWS.items():
        which.add_argument(f"--{name}", action="store_const", const=name, dest="shown", default="values", help=text)
    _add_gateway_commands(commands)
    _add_clean_command(commands)
    _add_set_command(commands)
    _add_setup_commands(commands)
    demo = commands.add_parser("demo", help="run a simulated home, a broker and the bridge; nothing to configure")
    demo.add_argument("--mqtt", metavar="URL", help="use this broker, such as mqtt://user:password@host:1883")
    demo.add_argument(
        "--allow", metavar="GROUPS", default="", help="obey commands, as BRIDGE_CONTROL__ALLOW does: all,grid"
    )
    simulate = commands.add_parser("simulate", help="run only a simulated or a captured gateway")
    simulate.add_argument("capture", nargs="?", type=Path, metavar="CAPTURE", help="a capture to play back")
    simulate.add_argument("--host", default="127.0.0.1", help="address to listen on (default %(default)s)")
    simulate.add_argument("--port", type=_port, default=8443, help="port to listen on (default %(default)s)")
    for command in (demo, simulate):
        command.add_argument("--home", choices=HOME_NAMES, default="three-phase", help="default %(default)s")
        command.add_argument(
            "--personality",
            choices=PERSONALITY_NAMES,
            metavar="NAME",
            help="what the gateway does with commands: %(choices)s",
        )
    completion = commands.add_parser("completion", help="print a script for tab completion")
    completion.add_argument("shell", choices=SHELLS)
    _add_descriptions(main, commands)
    return main


def _add_gateway_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    check = commands.add_parser("check", help="show step by step what works and what does not")
    check.add_argument("--accept-key", action="store_true", help="trust the TLS key that the gateway shows now")
    token = commands.add_parser("token", help="show which tokens there are, get one with the account, or paste one")
    token.add_argument("action", choices=("show", "get", "paste"), help="paste reads it from standard input")
    capture = commands.add_parser(
        "capture", help="collect all answers of the gateway, redacted, in a zip for a bug report"
    )
    capture.add_argument("--output", metavar="FILE", help="the zip to write")
    for command in (check, token, capture):
        command.add_argument("--gateway", metavar="HOST", help="which gateway, if several are configured")


def _add_clean_command(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    clean = commands.add_parser("clean", help="list what former settings have left at the broker, or remove it")
    clean.add_argument("--yes", action="store_true", help="remove what would be listed")
    clean.add_argument("--base", type=_topic, metavar="TOPIC", help="only below this former base topic")
    clean.add_argument("--prefix", type=_topic, metavar="TOPIC", help="only below this former discovery prefix")
    clean.add_argument("--gateway", metavar="SERIAL", help="only of this gateway, by its serial number or host")


def _add_set_command(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    command = commands.add_parser("set", help="set a value of the gateway by the running bridge, if it is allowed")
    command.add_argument("target", metavar="TARGET", help="what to set, such as storage/settings/reserve")
    command.add_argument("value", metavar="VALUE", help="what its topic shall have, such as 30")
    command.add_argument("--gateway", metavar="SERIAL", help="which gateway, by its serial number or host")
    command.add_argument("--hold", type=_hold, metavar="SECONDS", help="how long a limit holds")
    command.add_argument("--force", action="store_true", help="try it where it is known to be ignored or risky")
    command.add_argument("--dry-run", action="store_true", help="show the request to the gateway; write nothing")
    command.add_argument("--watch", action="store_true", help="go on for 5 minutes after it was confirmed")
    command.add_argument(
        "--timeout",
        type=_seconds,
        default=300.0,
        metavar="SECONDS",
        help="longest time until the outcome (default %(default)s)",
    )


def _add_setup_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    discover = commands.add_parser("discover", help="find the gateways of this network")
    discover.add_argument("--seconds", type=_seconds, default=4.0, help="how long to listen (default %(default)s)")
    setup = commands.add_parser(
        "setup", help="ask for gateway, token and broker, check each answer, and write the settings"
    )
    setup.add_argument(
        "--output",
        default=".env",
        metavar="FILE",
        help="a .toml file, or a file of environment variables (default: %(default)s)",
    )
    setup.add_argument("--show", action="store_true", help="print the environment for a container; write nothing")
    for command in (discover, setup):
        command.add_argument(
            "--interface",
            action="append",
            type=_address,
            default=[],
            metavar="ADDRESS",
            dest="interfaces",
            help="address of this machine to listen on; may be repeated (default: all)",
        )


def _topic(text: str) -> str:
    with suppress(ValueError):
        return topic_name(text)
    raise argparse.ArgumentTypeError(f"{text} is not a topic, such as enphase")


def _port(text: str) -> int:
    if not (text.isdecimal() and int(text) <= MAX_PORT):
        raise argparse.ArgumentTypeError(f"{text} is not a port: use 0 (any free one) to {MAX_PORT}")
    return int(text)


def _seconds(text: str) -> float:
    with suppress(ValueError):
        if 0 < float(text) <= MAX_LISTEN_S:
            return float(text)
    raise argparse.ArgumentTypeError(f"{text} is not a number of seconds up to {MAX_LISTEN_S:g}")


def _hold(text: str) -> float:
    with suppress(ValueError):
        if 0 < float(text) <= DAY_S:
            return float(text)
    raise argparse.ArgumentTypeError(f"{text} is not a number of seconds up to {DAY_S:g}")


def _address(text: str) -> str:
    """Accept only addresses: zeroconf does not know the names of interfaces."""
    with suppress(ValueError):
        return str(ipaddress.ip_address(text))
    raise argparse.ArgumentTypeError(f"{text} is not an IP address, such as 192.168.1.5")


def _with_settings(command: str, options: Mapping[str, object]) -> int:
    """Run a command that needs settings. Its module is imported only now, to save start time and memory."""
    name, function = ("run", "run_once") if command == "once" else (command, "run")
    try:
        settings = load()
        module = importlib.import_module(f"bridge.commands.{name}")
        return int(getattr(module, function)(settings, **options))
    except BadSetting as problem:
        print(f"iqgateway2mqtt: {problem}", file=sys.stderr)
        return EXIT_CONFIGURATION


def _with_extra(work: Callable[[], int], *, extra: str = "demo") -> int:
    try:
        return work()
    except ModuleNotFoundError as missing:
        command = install_command(extra)
        print(f"iqgateway2mqtt: {missing.name} is missing; this installs it: {command}", file=sys.stderr)
    except (OSError, BadSetting) as problem:
        print(f"iqgateway2mqtt: {problem}", file=sys.stderr)
    return EXIT_CONFIGURATION


def _demo(arguments: argparse.Namespace) -> int:
    from bridge.commands import demo  # noqa: PLC0415 - needs the demo extra

    return demo.run(arguments.home, arguments.personality, arguments.allow, arguments.mqtt)


def _simulate(arguments: argparse.Namespace) -> int:
    from bridge.commands import demo  # noqa: PLC0415 - needs the demo extra

    where = arguments.host, arguments.port
    return demo.run_simulator(arguments.home, arguments.personality, *where, arguments.capture)


def _discover(arguments: argparse.Namespace) -> int:
    from bridge.commands import session  # noqa: PLC0415 - takes long to import

    return session.run_discovery(arguments.seconds, arguments.interfaces)


def _completion(shell: str) -> int:
    import shtab  # noqa: PLC0415 - needs the completion extra

    print(shtab.complete(parser(), shell))
    return 0


def main(arguments: Sequence[str] | None = None, timing: "CommandTiming | None" = None) -> int:
    """Run one command, or show the help if none is given. Returns its exit code; exits with 2 if it is wrong.

    `timing` replaces the times for which `check`, `capture` and `setup` wait.
    """
    if not (sys.argv[1:] if arguments is None else arguments):
        parser().print_help(sys.stderr)
        return EXIT_USAGE
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
            options = {name: value for name, value in vars(given).items() if name != "command"}
            return _with_settings(command, options if timing is None else options | {"timing": timing})


def main_with_output() -> int:
    """Run the command of the command line. Returns its exit code, also where its output can't be written."""
    guard_output()
    code = 0
    try:
        try:
            code = main()
        finally:
            sys.stdout.flush()
    except* OutputLost as lost:
        code = give_up_output(lost)
    return code


def _add_descriptions(
    main: argparse.ArgumentParser, commands: "argparse._SubParsersAction[argparse.ArgumentParser]"
) -> None:
    """Add descriptions and the first steps to a parser that has all its commands."""
    main.epilog, main.formatter_class = FIRST_STEPS, argparse.RawDescriptionHelpFormatter
    for name, command in commands.choices.items():
        command.description = textwrap.dedent(DESCRIPTIONS.get(name, ""))
        command.formatter_class = argparse.RawDescriptionHelpFormatter
