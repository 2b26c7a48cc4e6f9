"""TLS towards the gateway: its certificate is self-signed, so its public key is pinned on first use.

The check stands at the end of the handshake, before any request: a stranger gets neither token nor cookie.
A new certificate for the same key is accepted, since only the key proves that it is the same gateway.
"""

import hashlib
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Literal

from bridge.gateway.errors import KeyChanged

SEQUENCE, VERSION = 0x30, 0xA0
LONG_FORM = 0x80
MAX_LENGTH_BYTES = 4
FIELDS_BEFORE_KEY = 5
"""serial number, signature algorithm, issuer, validity, subject"""
Mode = Literal["pin", "strict", "off"]


@dataclass(slots=True)
class KeyPin:
    """The key a gateway must show (`None`: whichever comes first), and the one it showed last."""

    mode: Mode = "pin"
    expected: str | None = None
    seen: str | None = None

    def check(self, certificate: bytes | None) -> None:
        """Raises KeyChanged where the key is not the pinned one."""
        self.seen = fingerprint(certificate or b"")
        if self.mode == "off":
            return
        self.expected = self.expected or self.seen
        if self.seen != self.expected:
            raise KeyChanged(self.seen)

    @property
    def stale(self) -> bool:
        """Whether the open connection was checked against another pin than the one now set."""
        return self.mode != "off" and None not in (self.seen, self.expected) and self.seen != self.expected


def context(pin: KeyPin) -> ssl.SSLContext:
    """A context whose handshakes end in `pin.check`."""

    class Pinned(ssl.SSLObject):
        def do_handshake(self) -> None:
            super().do_handshake()
            pin.check(self.getpeercert(binary_form=True))

    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    tls.check_hostname = False  # CN=envoy-<serial> never is the address
    tls.verify_mode = ssl.CERT_NONE  # self-signed; the pin stands instead
    tls.minimum_version = ssl.TLSVersion.TLSv1_2
    # Gateways of firmware 7 still offer SHA-1 signatures and short keys, which OpenSSL 3 refuses by default.
    tls.set_ciphers("DEFAULT:!aNULL:@SECLEVEL=0")
    tls.sslobject_class = Pinned
    return tls


def fingerprint(certificate: bytes) -> str:
    """SHA-256 of the public key (SPKI) in a DER certificate.

    Raises:
        ssl.SSLError: it is no certificate.
    """
    try:
        return hashlib.sha256(public_key(certificate)).hexdigest()
    except ValueError as error:
        raise ssl.SSLError("the gateway's certificate can't be read") from error


def public_key(certificate: bytes) -> bytes:
    """The SubjectPublicKeyInfo of a DER certificate: the sixth field after the optional version (RFC 5280, 4.1)."""
    body = _content(certificate, SEQUENCE)
    fields = (item for item in _items(_content(body, SEQUENCE)) if item[0] != VERSION)
    key = next(islice(fields, FIELDS_BEFORE_KEY, None), b"")
    if not key or key[0] != SEQUENCE:
        raise ValueError("no public key")
    return key


def _content(der: bytes, tag: int) -> bytes:
    start, end = _extent(der, 0)
    if der[0] != tag:
        raise ValueError("unexpected tag")
    return der[start:end]


def _items(der: bytes) -> Iterator[bytes]:
    position = 0
    while position < len(der):
        _, end = _extent(der, position)
        yield der[position:end]
        position = end


def _extent(der: bytes, position: int) -> tuple[int, int]:
    """Where the content of the element at `position` begins and ends."""
    header = der[position : position + 2]
    if len(header) < 2:  # noqa: PLR2004 - tag and length
        raise ValueError("cut off")
    start, length = position + 2, header[1]
    if length & LONG_FORM:
        count = length & ~LONG_FORM
        if not 1 <= count <= MAX_LENGTH_BYTES:
            raise ValueError("unusable length")
        length = int.from_bytes(der[start : start + count])
        start += count
    if start + length > len(der):
        raise ValueError("cut off")
    return start, start + length
