"""Faults to test against: each replaces the reply to a request or the way in which it is sent.

A fault is made by one of the functions below or by its name as text: `"hang"`, `"slow:0.5"`, `"status:503"` or
`"503"`. `Faults.add` adds it for the requests of a path.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from http import HTTPStatus

from bridge.simulator import cloud
from bridge.simulator.cloud import HTML_TYPE, UNAUTHORIZED_PAGE, with_claims
from bridge.simulator.http import NO_REPLY, BodySender, HttpReply, JsonValue, ReplyChannel, json_reply
from bridge.simulator.meters import STREAM_PATH

MakeReply = Callable[[], HttpReply]
"""Makes the reply that would be sent without the fault. The request has no effect unless this is called."""

MEBIBYTE = 1 << 20
WAIT_PAGE = b"<!DOCTYPE html>\n<html><head><title>Enphase</title></head><body><h1>Please wait</h1></body></html>\n"
BOOTING_PAGE = b"<html><body>System is starting up. Please retry after 30 seconds.</body></html>\n"
PATH_ALIASES = {
    "login": cloud.LOGIN_PATH,
    "tokens": cloud.TOKENS_PATH,
    "entrez": cloud.ENTREZ_PATH,
    "check": cloud.CHECK_PATH,
    "stream": STREAM_PATH,
}
"""Short names for paths. In addition, `gateway` and `cloud` match all paths of the gateway or of the cloud, and
`writes` all writes to the gateway.
"""


def is_write(method: str, path: str) -> bool:
    """Return whether a request would change something at the gateway. The live stream does not count."""
    return method not in ("GET", "HEAD") and path not in (*cloud.CLOUD_PATHS, STREAM_PATH)


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault: `reply` makes the reply that is sent instead; `name` is for people."""

    name: str
    reply: Callable[[MakeReply], HttpReply]


@dataclass(slots=True)
class ScheduledFault:
    """A fault for the next `left` requests of a place, or for all of them if `left` is None."""

    place: str
    fault: Fault
    left: int | None

    def matches(self, method: str, path: str) -> bool:
        if self.place == "writes":
            return is_write(method, path)
        if self.place in ("gateway", "cloud"):
            return (path in cloud.CLOUD_PATHS) == (self.place == "cloud")
        return fnmatchcase(path, PATH_ALIASES.get(self.place, self.place))


class Faults:
    """The faults that wait for requests.

    If several match a path, those with a limited number of times are used first, then the oldest.
    """

    def __init__(self) -> None:
        self._orders: list[ScheduledFault] = []

    def add(self, place: str, fault: Fault | str, times: int | None = None) -> None:
        """Add a fault for the next `times` requests of a place, or for all requests if `times` is None.

        A place is a path, a pattern (`/ivp/*`), a name of `PATH_ALIASES`, `gateway`, `cloud` or `writes`.

        Raises:
            ValueError: no fault has this name.
        """
        self._orders.append(ScheduledFault(place, fault_by_name(fault) if isinstance(fault, str) else fault, times))

    def clear(self, place: str | None = None) -> None:
        """Remove the faults of a place, or all faults."""
        self._orders = [order for order in self._orders if place not in (None, order.place)]

    def take(self, method: str, path: str) -> Fault | None:
        """Return the fault for a request and count it as used, or return None."""
        orders = [order for order in self._orders if order.matches(method, path)]
        if not orders:
            return None
        order = min(orders, key=lambda order: order.left is None)
        if order.left is not None:
            order.left -= 1
            if not order.left:
                self._orders.remove(order)
        return order.fault


def always(name: str, reply: HttpReply) -> Fault:
    """Return a fault that always sends the same reply."""
    return Fault(name, lambda _make: reply)


def with_body(name: str, change: Callable[[bytes], bytes]) -> Fault:
    """Return a fault that changes the body of the normal reply, for example to cut it or to falsify values."""

    def reply(make: MakeReply) -> HttpReply:
        answer = make()
        return replace(answer, body=change(answer.body))

    return Fault(name, reply)


def sent_with(name: str, send_body: BodySender, *, with_length: bool = True) -> Fault:
    """Return a fault that sends the normal reply with another function."""
    return Fault(name, lambda make: replace(make(), send_body=send_body, with_length=with_length))


def status(code: float = 503) -> Fault:
    """Reply with an error status and an HTML page, as the proxy in front of the gateway does."""
    page = UNAUTHORIZED_PAGE if code == HTTPStatus.UNAUTHORIZED else WAIT_PAGE
    return always(f"status:{int(code)}", HttpReply(int(code), page, HTML_TYPE))


def html() -> Fault:
    """Reply with status 200 and an HTML page instead of JSON."""
    return always("html", HttpReply(200, WAIT_PAGE, HTML_TYPE))


def empty() -> Fault:
    """Reply with an empty body."""
    return with_body("empty", lambda _body: b"")


def truncated() -> Fault:
    """Send the first half of the body, with the Content-Length of that half."""
    return with_body("truncated", lambda body: body[: len(body) // 2])


def error_object() -> Fault:
    """Reply with status 200 and a JSON object that reports an internal error."""
    return always("error_object", json_reply(200, {"error": "Internal error"}))


def status_object(code: float = 401) -> Fault:
    """Reply with status 200 and a JSON object that reports a refusal, as old firmware does for the inverters."""
    refusal: JsonValue = {
        "status": int(code),
        "error": "Not Authorized",
        "info": "You are not authorized.",
        "moreInfo": "",
    }
    return always("status_object", json_reply(200, refusal))


def garbage() -> Fault:
    """Insert bytes that are not valid UTF-8 in the middle of the body."""
    return with_body("garbage", lambda body: body[: len(body) // 2] + b"\xff\xfe\xc3(" + body[len(body) // 2 :])


def deep(levels: float = 100_000) -> Fault:
    """Reply with valid JSON that is nested deeper than parsers accept."""
    return with_body("deep", lambda _body: b"[" * int(levels) + b"]" * int(levels))


def hang() -> Fault:
    """Send nothing until the client closes the connection."""

    async def send_body(_body: bytes, channel: ReplyChannel) -> None:
        await channel.wait_closed()

    return always("hang", HttpReply(NO_REPLY, send_body=send_body))


def late(seconds: float = 1.0) -> Fault:
    """Send the normal reply after a delay."""

    async def send_body(body: bytes, channel: ReplyChannel) -> None:
        if not await channel.wait_closed(seconds):
            await channel.write(body, more=False)

    return sent_with("late", send_body)


def slow(pause: float = 1.0) -> Fault:
    """Send the normal body byte by byte with a pause (seconds) after each, so that no single read times out."""

    async def send_body(body: bytes, channel: ReplyChannel) -> None:
        for index in range(len(body)):
            await channel.write(body[index : index + 1], more=index + 1 < len(body))
            if await channel.wait_closed(pause):
                return

    return sent_with("slow", send_body)


def reset() -> Fault:
    """Reset the connection in the middle of the body."""

    async def send_body(body: bytes, channel: ReplyChannel) -> None:
        await channel.write(body[: len(body) // 2])
        channel.abort()

    return sent_with("reset", send_body)


def drop() -> Fault:
    """Reset the connection before the reply begins."""

    async def send_body(_body: bytes, channel: ReplyChannel) -> None:
        channel.abort()

    return always("drop", HttpReply(NO_REPLY, send_body=send_body))


def lost() -> Fault:
    """Carry out the request, and reset the connection before the reply begins."""

    async def send_body(_body: bytes, channel: ReplyChannel) -> None:
        channel.abort()

    return sent_with("lost", send_body)


def huge(mebibytes: float = 64) -> Fault:
    """Send a body of this size (MiB), without a length."""

    async def send_body(_body: bytes, channel: ReplyChannel) -> None:
        piece = b"[" + b"0," * (MEBIBYTE // 32)
        for _ in range(int(mebibytes * 16)):
            await channel.write(piece)
            await asyncio.sleep(0)  # so that a client which closes the connection is noticed
        await channel.write(b"0", more=False)

    return sent_with("huge", send_body, with_length=False)


def booting() -> Fault:
    """Reply as the proxy does while the gateway starts. Add this fault for `gateway`."""
    return always("booting", HttpReply(503, BOOTING_PAGE, {**HTML_TYPE, "Retry-After": "30"}))


def wrong_password() -> Fault:
    """Reply to a login as the cloud does for a wrong password."""
    return always("wrong_password", json_reply(401, {"message": "Invalid email or password"}))


def mfa() -> Fault:
    """Reply to a login as the cloud does for accounts with multi-factor authentication: success, but no session."""
    return always("mfa", json_reply(200, {"success": True, "isBlocked": False}))


def blocked() -> Fault:
    """Reply to a login as the cloud does for a blocked account."""
    return always("blocked", json_reply(200, {"success": False, "isBlocked": True}))


def not_your_serial() -> Fault:
    """Reply as the cloud does when the gateway does not belong to the account."""
    return always("not_your_serial", json_reply(403, {"message": "Serial number is not on this account"}))


def wrong_aud(serial: float = 122399999999) -> Fault:
    """Replace the serial number (`aud`) in the cloud's tokens, so that they are for another gateway."""
    return with_body("wrong_aud", lambda body: with_claims(body, aud=str(int(serial))))


def expired() -> Fault:
    """Replace the times in the cloud's tokens, so that they expired in 2001."""
    return with_body("expired", lambda body: with_claims(body, iat=900_000_000, exp=1_000_000_000))


FAULTS_BY_NAME: dict[str, Callable[..., Fault]] = {
    kind.__name__: kind
    for kind in (
        *(status, html, empty, truncated, error_object, status_object, garbage, deep),
        *(hang, late, slow, reset, drop, lost, huge, booting),
        *(wrong_password, mfa, blocked, not_your_serial, wrong_aud, expired),
    )
} | {"down": status, "timeout": hang}
"""The functions that make faults, by name."""


def fault_by_name(text: str) -> Fault:
    """Return the fault with this name, with an optional number after a colon; a number alone is a status.

    Raises:
        ValueError: no fault has this name.
    """
    if text.isdigit():
        return status(int(text))
    kind, _, number = text.partition(":")
    if kind not in FAULTS_BY_NAME:
        raise ValueError(
            f"no fault is called {kind!r}; there are {', '.join(sorted(FAULTS_BY_NAME))} and status codes"
        )
    return FAULTS_BY_NAME[kind](float(number)) if number else FAULTS_BY_NAME[kind]()
