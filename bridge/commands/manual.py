"""What `--help` teaches of each command, beyond the one line that lists it."""

import argparse
import textwrap
from collections.abc import Mapping

FIRST_STEPS = """\
first steps:
  iqgateway2mqtt demo                  see it at work; nothing to install or configure
  iqgateway2mqtt setup                 answer a few questions; each answer is tried at once
  iqgateway2mqtt check                 what works, what does not, and what to do about it
  iqgateway2mqtt run                   the service

Settings come from the environment (BRIDGE_...), .env, secret files and the TOML file named by
BRIDGE_CONFIG. The least that is needed: BRIDGE_GATEWAY__HOST, BRIDGE_GATEWAY__TOKEN (or an Enphase
account), and BRIDGE_MQTT__URL.

exit codes: 0 done or stopped, 2 wrong command line, 69 no answer, 77 refused, 78 a wrong setting
"""
MORE: Mapping[str, str] = {
    "run": """\
        Polls the gateways and keeps the broker's topics true, until it is stopped. Gateway, broker and
        cloud may come and go: that never ends it. SIGTERM and SIGINT stop it; SIGHUP makes it read its
        settings and tokens again, and if they are wrong, it says so and goes on with the old ones.""",
    "once": """\
        Asks for everything once and prints topics and values. Nothing is sent to the broker, so it can be
        tried beside a bridge that runs.""",
    "health": """\
        Asks /healthz where BRIDGE_HTTP__LISTEN says. It ends with 0 if the service is alive, else with 69.

        example: BRIDGE_HTTP__LISTEN=8080 iqgateway2mqtt health""",
    "check": """\
        Looks at each step on the way from the gateway's name to the broker's access rules, asks each
        endpoint once, and says what to do where something fails. It changes nothing but this: it keeps a
        TLS key that it sees for the first time, and a token that the account gave.""",
    "token": """\
        A token of a system owner lasts a year. No token is ever shown.

        example: iqgateway2mqtt token paste < token.txt""",
    "capture": """\
        The zip can be played back with `iqgateway2mqtt simulate FILE`. Serial numbers, names, addresses and
        secrets are replaced; look at it all the same before you send it.""",
    "demo": """\
        With a broker of yours, the devices appear in your Home Assistant; they are taken back at the end.

        example: iqgateway2mqtt demo --mqtt mqtt://user:password@192.168.1.10:1883""",
    "simulate": """\
        Prints the settings with which a bridge reads it. It also plays Enphase's cloud.

        example: iqgateway2mqtt simulate --home split-phase""",
    "setup": """\
        Nothing is written before all of it works, and nothing secret is shown while it is typed.

        example: sudo iqgateway2mqtt setup --output /etc/iqgateway2mqtt/settings.toml""",
    "discover": """\
        Asks by mDNS. It finds nothing in a container, or where the gateway is in another network.""",
    "completion": """\
        Prints a script for your shell to read.

        bash: iqgateway2mqtt completion bash > ~/.local/share/bash-completion/completions/iqgateway2mqtt
        zsh:  iqgateway2mqtt completion zsh > a folder of $fpath/_iqgateway2mqtt
        fish: iqgateway2mqtt completion fish > ~/.config/fish/completions/iqgateway2mqtt.fish""",
}


def teach(main: argparse.ArgumentParser, commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add it all to a parser that is complete otherwise."""
    main.epilog, main.formatter_class = FIRST_STEPS, argparse.RawDescriptionHelpFormatter
    for name, command in commands.choices.items():
        command.description = textwrap.dedent(MORE.get(name, ""))
        command.formatter_class = argparse.RawDescriptionHelpFormatter
