"""What can go wrong, by name: each fault decides what to send in place of an answer, or how to send it.

A fault is a value made by one of the functions below, or the text that names it: `"hang"`, `"status:503"` or just
`"503"`, `"slow:0.5"`. `Faults.add` orders it for a path.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from http import HTTPStatus

from bridge.simulator import cloud, gateway
from bridge.simulator.access import HTML, UNAUTHORIZED
from bridge.simulator.exchange import NO_REPLY, Line, Pace, Reply, json_reply
from bridge.simulator.rendering import Json
from bridge.simulator.tokens import recoded

Normal = Callable[[], Reply]
"""Makes the answer that would have been sent. A fault that does not call it leaves the gateway untouched."""

MEBIBYTE = 1 << 20
PAGE = b"<!DOCTYPE html>\n<html><head><title>Enphase</title></head><body><h1>Please wait</h1></body></html>\n"
BOOTING = b"<html><body>System is starting up. Please retry after 30 seconds.</body></html>\n"
PLACES = {
    "login": cloud.LOGIN,
    "tokens": cloud.TOKENS,
    "entrez": cloud.ENTREZ,
    "check": gateway.CHECK,
    "stream": gateway.STREAM,
}
"""Short names of paths. `gateway` and `cloud` stand for all of theirs."""


@dataclass(frozen=True, slots=True)
class Fault:
    """`name` is for people; `reply` makes what is sent."""

    name: str
    reply: Callable[[Normal], Reply]


@dataclass(slots=True)
class Order:
    """A fault that waits for requests: so many (`left`), or all."""

    place: str
    fault: Fault
    left: int | None

    def meets(self, path: str) -> bool:
        if self.place in ("gateway", "cloud"):
            return (path in cloud.PATHS) == (self.place == "cloud")
        return fnmatchcase(path, PLACES.get(self.place, self.place))


class Faults:
    """The faults on order. Where several meet a path, those with a number of `times` go first, then the oldest."""

    def __init__(self) -> None:
        self._orders: list[Order] = []

    def add(self, place: str, fault: Fault | str, times: int | None = None) -> None:
        """Orders a fault for the next `times` requests of a path, a pattern (`/ivp/*`) or a name of `PLACES`."""
        self._orders.append(Order(place, named(fault) if isinstance(fault, str) else fault, times))

    def clear(self, place: str | None = None) -> None:
        self._orders = [order for order in self._orders if place not in (None, order.place)]

    def take(self, path: str) -> Fault | None:
        """The fault for a request that has just come, if there is one."""
        orders = [order for order in self._orders if order.meets(path)]
        if not orders:
            return None
        order = min(orders, key=lambda order: order.left is None)
        if order.left is not None:
            order.left -= 1
            if not order.left:
                self._orders.remove(order)
        return order.fault


def fixed(name: str, reply: Reply) -> Fault:
    """Sends this, whatever was asked."""
    return Fault(name, lambda _normal: reply)


def edited(name: str, change: Callable[[bytes], bytes]) -> Fault:
    """Sends the true answer with another body: for half answers and for numbers that lie."""

    def reply(normal: Normal) -> Reply:
        answer = normal()
        return replace(answer, body=change(answer.body))

    return Fault(name, reply)


def paced(name: str, pace: Pace, *, sized: bool = True) -> Fault:
    """Sends the true answer in a way of its own."""
    return Fault(name, lambda normal: replace(normal(), pace=pace, sized=sized))


def status(code: float = 503) -> Fault:
    """An error page of the proxy before the gateway."""
    page = UNAUTHORIZED if code == HTTPStatus.UNAUTHORIZED else PAGE
    return fixed(f"status:{int(code)}", Reply(int(code), page, HTML))


def html() -> Fault:
    """200 with a page for people."""
    return fixed("html", Reply(200, PAGE, HTML))


def empty() -> Fault:
    return edited("empty", lambda _body: b"")


def truncated() -> Fault:
    """Half of the answer, with a length that fits the half."""
    return edited("truncated", lambda body: body[: len(body) // 2])


def error_object() -> Fault:
    return fixed("error_object", json_reply(200, {"error": "Internal error"}))


def status_object(code: float = 401) -> Fault:
    """200 with a refusal inside, as old firmware answers for the inverters."""
    refusal: Json = {
        "status": int(code),
        "error": "Not Authorized",
        "info": "You are not authorized.",
        "moreInfo": "",
    }
    return fixed("status_object", json_reply(200, refusal))


def garbage() -> Fault:
    """Bytes that are no text in UTF-8, in the middle of the answer."""
    return edited("garbage", lambda body: body[: len(body) // 2] + b"\xff\xfe\xc3(" + body[len(body) // 2 :])


def deep(levels: float = 100_000) -> Fault:
    """Valid JSON that is nested deeper than any parser likes."""
    return edited("deep", lambda _body: b"[" * int(levels) + b"]" * int(levels))


def hang() -> Fault:
    """Nothing at all, until the client has had enough."""

    async def pace(_body: bytes, line: Line) -> None:
        await line.gone()

    return fixed("hang", Reply(NO_REPLY, pace=pace))


def late(seconds: float = 1.0) -> Fault:
    """The true answer, after a while."""

    async def pace(body: bytes, line: Line) -> None:
        if not await line.gone(seconds):
            await line.write(body, more=False)

    return paced("late", pace)


def slow(pause: float = 1.0) -> Fault:
    """The true answer, byte by byte with a pause (seconds) between: no single read ever times out."""

    async def pace(body: bytes, line: Line) -> None:
        for index in range(len(body)):
            await line.write(body[index : index + 1], more=index + 1 < len(body))
            if await line.gone(pause):
                return

    return paced("slow", pace)


def reset() -> Fault:
    """The connection is cut in the middle of the answer."""

    async def pace(body: bytes, line: Line) -> None:
        await line.write(body[: len(body) // 2])
        line.cut()

    return paced("reset", pace)


def drop() -> Fault:
    """The connection is cut before the answer begins."""

    async def pace(_body: bytes, line: Line) -> None:
        line.cut()

    return fixed("drop", Reply(NO_REPLY, pace=pace))


def huge(mebibytes: float = 64) -> Fault:
    """An answer that does not end while anybody could want to read it."""

    async def pace(_body: bytes, line: Line) -> None:
        piece = b"[" + b"0," * (MEBIBYTE // 32)
        for _ in range(int(mebibytes * 16)):
            await line.write(piece)
        await line.write(b"0", more=False)

    return paced("huge", pace, sized=False)


def booting() -> Fault:
    """What the proxy says while the daemons behind it start: order it for `gateway`."""
    return fixed("booting", Reply(503, BOOTING, {**HTML, "Retry-After": "30"}))


def wrong_password() -> Fault:
    return fixed("wrong_password", json_reply(401, {"message": "Invalid email or password"}))


def mfa() -> Fault:
    """The login of an account with multi-factor authentication: a success that is none."""
    return fixed("mfa", json_reply(200, {"success": True, "isBlocked": False}))


def blocked() -> Fault:
    return fixed("blocked", json_reply(200, {"success": False, "isBlocked": True}))


def not_your_serial() -> Fault:
    return fixed("not_your_serial", json_reply(403, {"message": "Serial number is not on this account"}))


def wrong_aud(serial: float = 122399999999) -> Fault:
    """The cloud makes tokens for some other gateway."""
    return edited("wrong_aud", lambda body: recoded(body, aud=str(int(serial))))


def expired() -> Fault:
    """The cloud makes tokens that ended in 2001."""
    return edited("expired", lambda body: recoded(body, iat=900_000_000, exp=1_000_000_000))


KINDS: dict[str, Callable[..., Fault]] = {
    kind.__name__: kind
    for kind in (
        *(status, html, empty, truncated, error_object, status_object, garbage, deep),
        *(hang, late, slow, reset, drop, huge, booting),
        *(wrong_password, mfa, blocked, not_your_serial, wrong_aud, expired),
    )
} | {"down": status, "timeout": hang}
"""The faults by name."""


def named(text: str) -> Fault:
    """The fault that a text names, with at most one number after a colon; a number alone is a status."""
    if text.isdigit():
        return status(int(text))
    kind, _, number = text.partition(":")
    if kind not in KINDS:
        raise ValueError(f"no fault is called {kind!r}; there are {', '.join(sorted(KINDS))} and status codes")
    return KINDS[kind](float(number)) if number else KINDS[kind]()
