"""The errors of the edge towards a gateway and Enphase's cloud.

They are kinds of the errors in `bridge.model`, where the whole tree is drawn; a class of its own stands where a
caller acts differently.
"""

from urllib.parse import urlsplit

from bridge.model import HOUR_S, BadAnswer, BridgeError, Rejected, Unavailable, Unsupported

HOST_SETTING = "BRIDGE_GATEWAY__HOST"
TOKEN_PAGE = "https://entrez.enphaseenergy.com"  # noqa: S105 - an address, no token
PASTE = f"get a token at {TOKEN_PAGE} and set BRIDGE_GATEWAY__TOKEN to it"


class ConnectionFault(Unavailable):
    """A fault that a second try a moment later often cures: refused, reset, 502, 503, 504."""


class UnknownName(ConnectionFault):
    """The host name can't be resolved."""


class TlsFault(ConnectionFault):
    """The TLS handshake failed: what answers may be no gateway, or one of firmware before 7, which has no TLS."""


class BrokenOff(ConnectionFault):
    """The connection was closed without an answer, as by a TLS port that is spoken to in plain HTTP."""


class Overloaded(ConnectionFault):
    """The gateway answers 502, 503 or 504: it is starting, or has more to do than it can."""


class Starting(Unavailable):
    """The gateway has just booted (503 with a time to wait): it answers in half a minute."""


class GatewayFault(Unavailable):
    """The gateway answers 429 or 500: it has not done what was asked."""


class KeyChanged(Rejected):
    """The gateway shows another TLS key than the pinned one; nothing was sent to it."""

    def __init__(self, fingerprint: str) -> None:
        super().__init__(
            "the gateway's TLS key has changed: if it was reset, replaced or updated, accept the new key with "
            "`iqgateway2mqtt check --accept-key`; if not, something else answers at its address"
        )
        self.fingerprint = fingerprint


class EndpointRefused(Unsupported):
    """401 for one endpoint while the gateway calls the token valid, as 7.3.130 does on /ivp/ensemble/*."""


class RequestRefused(BadAnswer):
    """A status that tells that a request was not carried out, such as 400."""


class TokenRejected(Rejected):
    """This token can't serve: another one is needed."""


class CloudUnavailable(Unavailable):
    """Enphase's cloud does not answer, or not as it should: ask again later."""


class RateLimited(CloudUnavailable):
    """Enphase's cloud asks for a pause (429): another request would count as well."""


class CloudRejected(Rejected):
    """Enphase's cloud refuses this account. `pause_s` is how long to leave it alone, in seconds."""

    pause_s = 4 * HOUR_S


class WrongPassword(CloudRejected):
    """The password is wrong: it is never tried again, since each try brings the account closer to being locked."""

    pause_s = float("inf")

    def __init__(self) -> None:
        super().__init__(
            "Enphase's cloud refuses the password: correct BRIDGE_GATEWAY__USERNAME and "
            f"BRIDGE_GATEWAY__PASSWORD, then restart (these are not tried again), or {PASTE}"
        )


class MultiFactor(CloudRejected):
    """The account asks for a second factor. Each try may send the owner a code, so one a day is made.

    It is made at all because the second factor can be switched off.
    """

    pause_s = 24 * HOUR_S

    def __init__(self) -> None:
        super().__init__(f"the Enphase account asks for a second factor, which only a person can give: {PASTE}")


class Blocked(CloudRejected):
    """Enphase has blocked the account."""

    pause_s = 24 * HOUR_S

    def __init__(self) -> None:
        super().__init__(
            "Enphase has blocked the account: log in at https://enlighten.enphaseenergy.com to have it "
            f"unblocked, or {PASTE}"
        )


class NotOnAccount(CloudRejected):
    """The gateway belongs to another account."""

    def __init__(self, serial: str) -> None:
        super().__init__(
            f"Enphase's cloud gives this account no token for gateway {serial}: use the account of the "
            f"system's owner, or {PASTE}"
        )


REFUSALS: tuple[type[CloudRejected], ...] = (WrongPassword, MultiFactor, Blocked)
"""Refusals of an account, whichever gateway it is about."""


def other_scheme(url: str) -> str:
    """The advice to ask a gateway by HTTP instead of HTTPS, or the other way round. `url` is where it is asked."""
    scheme, host = urlsplit(url).scheme, urlsplit(url).netloc
    if scheme == "https":
        return f"firmware before 7 has no TLS: set {HOST_SETTING}=http://{host}"
    return f"firmware from 7 on speaks TLS: set {HOST_SETTING}={host}"


NO_GATEWAY = "what answers there is not an IQ Gateway (it has no page /info)"


def at_first_contact(error: BridgeError, url: str) -> str:
    """What the owner can do about an error of `/info` at a gateway that has never answered at this URL.

    The advice is empty if the error says it.
    """
    is_secure = url.startswith("https")
    match error:
        case UnknownName() | Starting() | Overloaded():
            return ""
        case TlsFault() if is_secure:
            return other_scheme(url)
        case BrokenOff() | BadAnswer() if not is_secure:
            return other_scheme(url)
        case BadAnswer() | Unsupported():
            return f"is {HOST_SETTING} right?"
        case Unavailable():
            is_there = f"is the gateway on and in this network, and is {HOST_SETTING} right?"
            return f"{is_there} Otherwise, {other_scheme(url)}"
        case _:
            return ""


def raise_for_status(status: int, path: str) -> None:
    """Check the status of an answer. The content type is not checked, since answers of /ivp have none.

    Raises:
        BridgeError: the status is no success; its class tells what to do.
    """
    match status:
        case 401:
            raise EndpointRefused(f"{path}: the gateway refuses this (401)")
        case 403:
            raise Rejected(f"{path}: the gateway forbids this to the token's role (403)")
        case 404 | 405 | 410 | 501:
            raise Unsupported(f"{path}: the gateway does not have this ({status})")
        case 503:
            raise Overloaded("the gateway is starting or overloaded (503)")
        case 502 | 504:
            raise Overloaded(f"the gateway is overloaded ({status})")
        case 429 | 500:
            raise GatewayFault(f"{path}: the gateway fails ({status})")
        case _ if not 200 <= status < 300:  # noqa: PLR2004 - success
            raise RequestRefused(f"{path}: the gateway answers with status {status}")
        case _:
            return
