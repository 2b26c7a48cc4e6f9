"""`health`: asks the service on this machine whether it is alive; meant as a container's health check."""

import http.client
import json
from contextlib import closing

from bridge.commands.report import EXIT_UNAVAILABLE
from bridge.model import BadSetting
from bridge.settings import LOOPBACK, Settings

HEALTH_TIMEOUT_S = 4.0
"""Shorter than a container's health check, which gives up after five seconds."""
MAX_ANSWER_BYTES = 10_000
WILDCARD_TO_LOOPBACK = {"0.0.0.0": LOOPBACK, "::": "::1"}  # noqa: S104 - nothing is bound here


def _ask(host: str, port: int) -> tuple[bool, str]:
    """Whether the service is alive, and a line that says so."""
    with closing(
        http.client.HTTPConnection(WILDCARD_TO_LOOPBACK.get(host, host), port, timeout=HEALTH_TIMEOUT_S)
    ) as connection:
        connection.request("GET", "/healthz")
        answer = connection.getresponse()
        answer_fields = json.loads(answer.read(MAX_ANSWER_BYTES))
    stuck = ", ".join(map(str, answer_fields["stuck"]))
    return answer.status == http.client.OK, f"stuck: {stuck}" if stuck else "alive"


def run(settings: Settings) -> int:
    """Run the command. Returns 69 if the service is not alive.

    Raises:
        BadSetting: no HTTP listener is configured.
    """
    if settings.http.listen is None:
        raise BadSetting(
            "BRIDGE_HTTP__LISTEN: not set, so the service can't be asked: set it to a port, such as 8080"
        )
    try:
        is_well, line = _ask(*settings.http.address)
    except OSError as error:
        is_well, line = False, f"no answer at {settings.http.listen}: {error.strerror or error}"
    except (http.client.HTTPException, ValueError, KeyError, TypeError):
        is_well, line = False, f"another program answers at {settings.http.listen}"
    print(line)
    return 0 if is_well else EXIT_UNAVAILABLE
