"""`health`: asks the service that runs here whether it is alive, as a container's health check does."""

import http.client
import json
from contextlib import closing

from bridge.commands.codes import UNAVAILABLE
from bridge.config import LOOPBACK, Settings
from bridge.model import BadSetting

TIMEOUT = 4.0
"""Seconds. A container's health check gives up after five."""
LONGEST = 10_000
EVERYWHERE = {"0.0.0.0": LOOPBACK, "::": "::1"}  # noqa: S104 - what is listened on, and where to find it


def _ask(host: str, port: int) -> tuple[bool, str]:
    """Whether all is well, and a line that says so."""
    with closing(http.client.HTTPConnection(EVERYWHERE.get(host, host), port, timeout=TIMEOUT)) as connection:
        connection.request("GET", "/healthz")
        answer = connection.getresponse()
        told = json.loads(answer.read(LONGEST))
    stuck = ", ".join(map(str, told["stuck"]))
    return answer.status == http.client.OK, f"stuck: {stuck}" if stuck else "alive"


def run(settings: Settings) -> int:
    if settings.http.listen is None:
        raise BadSetting("BRIDGE_HTTP__LISTEN: not set, so there is nothing to ask: set it to a port, such as 8080")
    try:
        is_well, line = _ask(*settings.http.address)
    except OSError as error:
        is_well, line = False, f"no answer at {settings.http.listen}: {error.strerror or error}"
    except (http.client.HTTPException, ValueError, KeyError, TypeError):
        is_well, line = False, f"another program answers at {settings.http.listen}"
    print(line)
    return 0 if is_well else UNAVAILABLE
