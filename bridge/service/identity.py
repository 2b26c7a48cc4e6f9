"""Which gateway this is: its serial number, its TLS key, and what earlier runs knew of it."""

import logging
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, replace
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from bridge.config import GatewaySettings
from bridge.gateway import Gateway, Kept, KeyChanged, Token
from bridge.model import MOST_GEAR, Facts, MeterFacts, Rejected
from bridge.store import Store

LOG = logging.getLogger(__name__)
CLOUD = "cloud"
METERS = TypeAdapter(tuple[MeterFacts, ...])
GEAR = TypeAdapter(Annotated[frozenset[str], Field(max_length=MOST_GEAR)])


class Identity:
    """What is known of one gateway, in memory and in the store. A gateway is its serial number, not its address."""

    def __init__(self, settings: GatewaySettings, gateway: Gateway, store: Store) -> None:
        self._settings, self._gateway, self._store = settings, gateway, store
        self.facts = Facts("")

    @property
    def serial(self) -> str | None:
        """Known once the gateway has said it, or from the settings or an earlier run."""
        known = self.facts.serial or self._settings.serial or self._store.serial_of(self._settings.host)
        return known.lower() if known else None

    @property
    def known(self) -> bool:
        """Whether the gateway has said who it is."""
        return bool(self.facts.serial)

    def recognise(self, facts: Facts) -> None:
        """Take what `/info` says for true, if it comes from the gateway that we want.

        Raises:
            Rejected: it is another one; its data must not be mixed with ours.
            KeyChanged: it says that it is, with another TLS key.
        """
        wanted = self.facts.serial or (self._settings.serial or "").lower()
        if wanted and facts.serial != wanted:
            raise Rejected(
                f"gateway {facts.serial} answers at {self._settings.host} where {wanted} is expected: "
                "correct BRIDGE_GATEWAY__HOST or BRIDGE_GATEWAY__SERIAL"
            )
        self._check_key(facts)
        if not self.known:
            self._gateway.identify(facts.serial)
            state = self._store.load(facts.serial)
            if state.token:  # known, though at another address
                self._gateway.tokens.offer(state.token)
            self._gateway.tokens.recall(state.extra.get(CLOUD))
            self._store.remember(self._settings.host, facts.serial)
            facts = replace(facts, meters=self._known_meters(facts), gear=self._known_gear(facts))
        self.learn(facts)

    def learn(self, facts: Facts) -> None:
        """Keep what other endpoints must know, also for the next run."""
        self.facts = facts
        state = self._store.load(facts.serial)
        meters = None if facts.meters is None else [asdict(meter) for meter in facts.meters]
        known = {"meters": meters, "gear": sorted(facts.gear)}
        changed = state.changed(firmware=facts.firmware, extra={**state.extra, **known})
        if changed != state:
            self._store.save(facts.serial, changed)

    def keep_token(self, token: Token) -> None:
        """A new token must outlive the process."""
        if self.known:
            state = self._store.load(self.facts.serial)
            self._store.save(self.facts.serial, state.changed(token=token.secret))

    def keep_pause(self, kept: Kept) -> None:
        """So must what the cloud has refused: it locks accounts."""
        if self.known:
            state = self._store.load(self.facts.serial)
            others = {name: value for name, value in state.extra.items() if name != CLOUD}
            if kept or CLOUD in state.extra:
                extra = {**others, CLOUD: dict(kept)} if kept else others
                self._store.save(self.facts.serial, state.changed(extra=extra))

    def published(self) -> object:
        """What an earlier run has published of this gateway."""
        return self._store.load(_tree_of(self.facts.serial)).extra

    def keep_published(self, what: dict[str, Any]) -> None:
        """In a file of its own: it is large, and changes seldom."""
        state = self._store.load(_tree_of(self.facts.serial))
        if state.extra != what:
            self._store.save(_tree_of(self.facts.serial), state.changed(extra=what))

    def counted(self) -> Mapping[str, Any]:
        """Counters of an earlier run."""
        return self._store.load(_counters_of(self.facts.serial)).extra

    def keep_counted(self, what: dict[str, Any]) -> None:
        state = self._store.load(_counters_of(self.facts.serial))
        self._store.save(_counters_of(self.facts.serial), state.changed(extra=what))

    def repinned(self, facts: Facts, seen: str | None) -> bool:
        """Whether a changed key may be trusted: a nightly update can bring one together with the new firmware.

        `facts` are those that `/info` gives behind the new key `seen`.
        """
        known = self._store.load(self.serial or "")
        same = facts.serial == self.serial
        updated = known.firmware is not None and facts.firmware != known.firmware
        if self._settings.tls != "pin" or seen is None or not (same and updated):
            return False
        self._gateway.pin(seen)
        self._store.save(facts.serial, known.changed(key_pin=seen, firmware=facts.firmware))
        return True

    def _check_key(self, facts: Facts) -> None:
        """Trust on first use: the key that `/info` came with must be the one known of this serial number."""
        seen = self._gateway.fingerprint
        state = self._store.load(facts.serial)
        if seen is None or self._settings.tls == "off":
            return
        if state.key_pin not in (None, seen):
            raise KeyChanged(seen)
        self._gateway.pin(seen)
        if state.key_pin is None:
            self._store.save(facts.serial, state.changed(key_pin=seen))

    def _known_meters(self, facts: Facts) -> tuple[MeterFacts, ...] | None:
        """From an earlier run, so that the readings need not wait for `/ivp/meters`."""
        with suppress(ValidationError):
            return METERS.validate_python(self._store.load(facts.serial).extra.get("meters"))
        return None

    def _known_gear(self, facts: Facts) -> frozenset[str]:
        """From an earlier run, so that its values do not wait for the inventory."""
        with suppress(ValidationError):
            return GEAR.validate_python(self._store.load(facts.serial).extra.get("gear"))
        return frozenset()


def _counters_of(serial: str) -> str:
    return f"{serial}-counters"


def _tree_of(serial: str) -> str:
    return f"{serial}-tree"
