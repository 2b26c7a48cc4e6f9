"""Starts the bridge with the options of the Home Assistant add-on as its settings (environment variables).

    start.py /data/options.json http://supervisor iqgateway2mqtt

The bridge uses the supervisor's MQTT broker unless the options name another. It runs as the user that the third
argument names, and without the supervisor's token: only this script needs to be root, to read the options.
"""

import json
import os
import pwd
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

BRIDGE = "iqgateway2mqtt"
EXIT_CONFIG = 78
START = "start"
"""The options that are for this script, and no settings of the bridge."""
SUPERVISORS_VARIABLES = {"SUPERVISOR_TOKEN", "HASSIO_TOKEN"}
"""Variables that give access to the supervisor; the bridge does not get them."""
TIMEOUT_S = 10


def settings(options: Mapping[str, Any], path: str = "BRIDGE") -> Iterator[tuple[str, str]]:
    """Yield settings: `host` in `gateway` becomes BRIDGE_GATEWAY__HOST; `more` lists further settings."""
    separator = "_" if path == "BRIDGE" else "__"
    for name, value in options.items():
        if name == "more":
            yield from ((str(one["name"]), str(one["value"])) for one in value)
        elif isinstance(value, Mapping):
            yield from settings(value, f"{path}{separator}{name.upper()}")
        elif value not in (None, ""):
            yield f"{path}{separator}{name.upper()}", str(value)


def broker(supervisor: str) -> dict[str, str]:
    """Return the settings of the supervisor's broker, such as the Mosquitto add-on, or none if it has no broker."""
    headers = {"Authorization": f"Bearer {os.environ.get('SUPERVISOR_TOKEN', '')}"}
    request = urllib.request.Request(f"{supervisor}/services/mqtt", headers=headers)  # noqa: S310 - the supervisor's address is http
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:  # noqa: S310
            found = json.load(answer)["data"]
            scheme = "mqtts" if found.get("ssl") else "mqtt"
            given = {"URL": f"{scheme}://{found['host']}:{found['port']}"}
    except (urllib.error.URLError, ValueError, KeyError, TypeError, OSError):
        return {}
    given |= {name.upper(): found[name] for name in ("username", "password") if found.get(name)}
    return {f"BRIDGE_MQTT__{name}": str(value) for name, value in given.items()}


def become(user: str, state: Path) -> None:
    """Go on as this user, who gets the image's state folder: an earlier version of the add-on wrote it as root."""
    account = pwd.getpwnam(user)
    state.mkdir(mode=0o700, exist_ok=True)
    for path in (state, *state.iterdir()):
        os.chown(path, account.pw_uid, account.pw_gid, follow_symlinks=False)
    os.setgroups([])
    os.setgid(account.pw_gid)
    os.setuid(account.pw_uid)


def check(start: Mapping[str, Any], environment: Mapping[str, str]) -> None:
    """Write into the log what works and what does not, and trust the gateway's new key, if the options say so."""
    if start.get("check") or start.get("accept_key"):
        how = ["--accept-key"] if start.get("accept_key") else []
        subprocess.run([BRIDGE, "check", *how], env=environment, check=False)  # noqa: S603 - our own program


def main(options: Path, supervisor: str, user: str | None = None) -> None:
    given = json.loads(options.read_text())
    start = given.pop(START, {})
    chosen = dict(settings(given))
    if "BRIDGE_MQTT__URL" not in chosen:
        known = broker(supervisor)
        if not known:
            sys.stderr.write(
                "There is no MQTT broker: install the Mosquitto broker add-on, or name one in this add-on's "
                "configuration (mqtt, url: mqtt://host:1883), then start this again.\n"
            )
            sys.exit(EXIT_CONFIG)
        chosen = known | chosen
    environment = {name: value for name, value in os.environ.items() if name not in SUPERVISORS_VARIABLES} | chosen
    if user is not None:
        become(user, Path(os.environ["BRIDGE_STATE_DIR"]))
    check(start, environment)
    os.execvpe(BRIDGE, [BRIDGE, "run"], environment)  # noqa: S606 - no shell


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
