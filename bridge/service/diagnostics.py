"""What the bridge itself knows of a gateway: the rows of source `bridge` on device `gateway`."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

from bridge.model import Measurement, Quantity, Reading, Scalar
from bridge.records import COUNT, DURATION, TEXT, TIME, measurement

SOURCE = "bridge"
ONCE_A_MINUTE = 60.0
FAILURES = Quantity(None, None, "total_increasing", 0)
MAX_TEXT = 255

PROBLEM = measurement("problem", TEXT, enabled=True, diagnostic=True)
TOKEN_EXPIRES = measurement("token_expires", TIME, enabled=True, diagnostic=True)
TOKEN_ROLE = measurement("token_role", TEXT, diagnostic=True)
CERTIFICATE = measurement("certificate", TEXT, diagnostic=True)
LAST_ANSWER = measurement("last_answer", TIME, diagnostic=True, interval=ONCE_A_MINUTE)
ANSWER_TIME = measurement("answer_time", DURATION, diagnostic=True, interval=ONCE_A_MINUTE)
COUNTERS_HELD = measurement("counters_held", COUNT, diagnostic=True)
FAILED = measurement("failures", FAILURES, diagnostic=True, interval=ONCE_A_MINUTE)

ROWS = (PROBLEM, TOKEN_EXPIRES, TOKEN_ROLE, CERTIFICATE, COUNTERS_HELD, LAST_ANSWER, ANSWER_TIME, FAILED)


@dataclass(slots=True)
class Diagnostics:
    """Health of one gateway. `answer_time` is in seconds, `failures` counts since the start of the bridge.

    What is not known has no topic, but `problem`, which is `none` where there is none.
    """

    problem: str | None = None
    token_expires: datetime | None = None
    token_role: str | None = None
    certificate: str | None = None
    last_answer: datetime | None = None
    answer_time: float | None = None
    failures: int = 0
    counters_held: int = 0

    def readings(self) -> Iterator[Reading]:
        yield _reading(PROBLEM, (self.problem or "none")[:MAX_TEXT])
        known: tuple[tuple[Measurement, Scalar], ...] = (
            (TOKEN_EXPIRES, self.token_expires),
            (TOKEN_ROLE, self.token_role),
            (CERTIFICATE, self.certificate),
            (COUNTERS_HELD, self.counters_held),
            (LAST_ANSWER, self.last_answer),
            (ANSWER_TIME, self.answer_time),
            (FAILED, self.failures),
        )
        yield from (_reading(row, value) for row, value in known if value is not None)

    @property
    def urgent(self) -> tuple[object, ...]:
        """What is told at once; the rest may wait a minute."""
        return self.problem, self.token_expires, self.token_role, self.certificate, self.counters_held


def _reading(row: Measurement, value: Scalar) -> Reading:
    return Reading("gateway", None, row, value)
