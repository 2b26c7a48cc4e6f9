"""The errors of this edge: the kinds of `bridge.model`, told apart where the caller acts differently."""

from bridge.model import Rejected, Unavailable, Unsupported

TOKEN_PAGE = "https://entrez.enphaseenergy.com"  # noqa: S105 - an address, no token
PASTE = f"get a token at {TOKEN_PAGE} and set BRIDGE_GATEWAY__TOKEN to it"
MINUTE, HOUR = 60.0, 3600.0


class KeyChanged(Rejected):
    """The gateway shows another TLS key than the pinned one; nothing was sent to it."""

    def __init__(self, fingerprint: str) -> None:
        super().__init__(
            "the gateway's TLS key has changed: if it was reset, replaced or updated, accept the new key with "
            "`iqgateway2mqtt check --accept-key`; if not, something else answers at its address"
        )
        self.fingerprint = fingerprint


class EndpointRefused(Unsupported):
    """401 for this endpoint while the gateway calls the token valid, as 7.3.130 does on /ivp/ensemble/*."""


class TokenRejected(Rejected):
    """This token can't serve: another one is needed."""


class CloudUnavailable(Unavailable):
    """Enphase's cloud does not answer, or not as it should: ask again later."""


class CloudRejected(Rejected):
    """Enphase's cloud refuses this account. `pause` is how long to leave it alone, in seconds."""

    pause = 4 * HOUR


class WrongPassword(CloudRejected):
    pause = float("inf")

    def __init__(self) -> None:
        super().__init__(
            "Enphase's cloud refuses the password: correct BRIDGE_GATEWAY__USERNAME and "
            f"BRIDGE_GATEWAY__PASSWORD, then restart (these are not tried again), or {PASTE}"
        )


class MultiFactor(CloudRejected):
    """Each try may send the owner a code; it can be switched off, so that one try a day is made."""

    pause = 24 * HOUR

    def __init__(self) -> None:
        super().__init__(f"the Enphase account asks for a second factor, which only a person can give: {PASTE}")


class Blocked(CloudRejected):
    pause = 24 * HOUR

    def __init__(self) -> None:
        super().__init__(
            "Enphase has blocked the account: log in at https://enlighten.enphaseenergy.com to have it "
            f"unblocked, or {PASTE}"
        )


class NotOnAccount(CloudRejected):
    def __init__(self, serial: str) -> None:
        super().__init__(
            f"Enphase's cloud gives this account no token for gateway {serial}: use the account of the "
            f"system's owner, or {PASTE}"
        )


class ConnectionFault(Unavailable):
    """A fault that a second try a moment later often cures: refused, reset, 502, 503, 504."""
