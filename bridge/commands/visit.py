"""The first contact with a gateway, as `check`, `token` and `capture` make it: who answers, and do we know it?"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from bridge.config import GatewaySettings, Settings
from bridge.endpoints import BY_SOURCE, Endpoint, Parsed
from bridge.gateway import Kept, KeyChanged, Token, open_gateway
from bridge.model import Answer, BadAnswer, BadSetting, BridgeError, Facts, Request, Unsupported
from bridge.service.identity import Identity
from bridge.store import GatewayState, Store

INFO = BY_SOURCE["info"]
TELLS_MORE = "`iqgateway2mqtt check` tells more"


class Visit:
    """One gateway, opened with what the store knows of it.

    `known` is the serial number that answered here last time, `pinned` the key that was known before this visit,
    `info` the answer of `/info`, for which nobody need ask twice.
    """

    def __init__(self, settings: Settings, own: GatewaySettings, store: Store) -> None:
        """Raises BadSetting where host or CA file can't be used."""
        self.own, self.store = own, store
        self.known = store.serial_of(own.host)
        state = store.load(self.known) if self.known else GatewayState()
        self.pinned = state.key_pin
        self.info: Answer | None = None
        self.gateway = open_gateway(
            own,
            settings.cloud,
            pin=state.key_pin,
            stored_token=state.token,
            on_new_token=self._keep,
            on_pause=self._keep_pause,
        )
        self._identity = Identity(own, self.gateway, store)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.gateway.aclose()

    @property
    def secure(self) -> bool:
        """Whether there are TLS and tokens; firmware before 7 has neither."""
        return self.own.base_url.startswith("https")

    @property
    def facts(self) -> Facts:
        return self._identity.facts

    @property
    def state(self) -> GatewayState:
        """What is kept of the gateway that was met."""
        return self.store.load(self.facts.serial)

    async def meet(self) -> Facts:
        """Ask who it is, and get to know it. A key that is seen for the first time is pinned.

        Raises:
            KeyChanged: it shows another key than the pinned one; it was told nothing.
            Rejected: it is another gateway than the settings say.
            Unavailable, BadAnswer: nobody there, or something else.
        """
        with _no_gateway():
            answer = await self.gateway.fetch(Request(INFO.path), deadline=INFO.timeout)
        facts = self._facts_of(answer)
        self.pinned = self.pinned or self.store.load(facts.serial).key_pin
        return self._recognise(facts)

    async def look(self) -> tuple[Facts, str]:
        """Who shows another key, and that key."""
        with _no_gateway():
            answer, seen = await self.gateway.look()
        facts = self._facts_of(answer)
        self.pinned = self.pinned or self.store.load(facts.serial).key_pin
        return facts, seen or ""

    def updated(self, facts: Facts, key: str) -> bool:
        """Whether a new key may be trusted since it came with new firmware; if so it is."""
        return self._identity.repinned(facts, key) and bool(self._recognise(facts))

    def accept(self, facts: Facts, key: str) -> None:
        """The owner says that the new key is right. Raises Rejected where the settings want another gateway."""
        self.gateway.pin(key)
        try:
            self._recognise(facts)
        except KeyChanged:
            self.store.save(facts.serial, self.store.load(facts.serial).changed(key_pin=key))
            self._recognise(facts)

    async def introduce(self) -> Facts:
        """As the service does it: `meet`, and trust a key that changed with the firmware."""
        try:
            return await self.meet()
        except KeyChanged:
            facts, key = await self.look()
            if not self.updated(facts, key):
                raise
            return facts

    def learn(self, facts: Facts) -> None:
        self._identity.learn(facts)

    def keep(self, token: Token) -> bool:
        """Whether the disk has it. The account is in order then."""
        self._keep_pause({})
        return self.store.save(self.facts.serial, self.state.changed(token=token.secret))

    def _keep_pause(self, kept: Kept) -> None:
        self._identity.keep_pause(kept)

    def _keep(self, token: Token) -> None:
        self._identity.keep_token(token)

    def _recognise(self, facts: Facts) -> Facts:
        self._identity.recognise(facts)
        return facts

    def _facts_of(self, answer: Answer) -> Facts:
        self.info = answer
        facts = understood(INFO, answer, Facts("")).facts
        assert facts is not None, "/info always tells"  # noqa: S101 - its split function sees to it
        return facts


@contextmanager
def _no_gateway() -> Iterator[None]:
    """Every gateway has /info, and has it for everybody."""
    try:
        yield
    except Unsupported as error:
        raise BadAnswer(f"this is no gateway ({error})") from None


def understood(endpoint: Endpoint, answer: Answer, facts: Facts) -> Parsed:
    """Raises BadAnswer where it is none."""
    try:
        return endpoint.split(answer.body, facts, time.time())
    except BridgeError:
        raise
    except Exception as error:  # an answer that nobody has thought of
        raise BadAnswer(f"{endpoint.path}: unforeseen answer ({type(error).__name__})") from error


def chosen(settings: Settings, name: str | None) -> tuple[GatewaySettings, ...]:
    """The gateway with this host or name, or all. Raises BadSetting where there is none."""
    every = settings.all_gateways
    if not every:
        raise BadSetting("this bridge has no gateway: see BRIDGE_GATEWAYS_FILE and BRIDGE_SHARD")
    found = tuple(gateway for gateway in every if name in (None, gateway.host, gateway.base_url, gateway.name))
    if not found:
        raise BadSetting(f"--gateway: no gateway is called {name}; there is {_hosts(every)}")
    return found


def only(settings: Settings, name: str | None) -> GatewaySettings:
    """The gateway with this host or name, or the only one there is."""
    found = chosen(settings, name)
    if len(found) > 1:
        raise BadSetting(f"--gateway: several gateways are configured, name one of {_hosts(found)}")
    return found[0]


def _hosts(gateways: tuple[GatewaySettings, ...]) -> str:
    return ", ".join(gateway.host for gateway in gateways)
