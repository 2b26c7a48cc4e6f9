"""Tokens as Enphase's cloud makes them: three base64url parts. The signature is a constant, which nobody checks."""

import json
import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Mapping

Claim = str | int
Claims = Mapping[str, Claim]

OWNER = 365 * 86400
INSTALLER = 12 * 3600
"""Lifetimes in seconds."""
SIGNATURE = "c2ln"
TOKEN = re.compile(rb"[\w-]+\.[\w-]+\.[\w-]+")
HEADER = {"kid": "7d10005d-7899-4c0d-bcb4-244f98ee156b", "typ": "JWT", "alg": "ES256"}


def encode(claims: Claims) -> str:
    return f"{_part(HEADER)}.{_part(claims)}.{SIGNATURE}"


def decode(token: str) -> Claims:
    """The claims of a token, or none if it is no token of ours."""
    try:
        _, payload, signature = token.split(".")
        claims = json.loads(urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    except ValueError:
        return {}
    return claims if isinstance(claims, dict) and signature == SIGNATURE else {}


def recoded(body: bytes, **claims: Claim) -> bytes:
    """The same document, with other claims in the token that it holds."""
    return TOKEN.sub(lambda found: encode({**decode(found[0].decode()), **claims}).encode(), body)


def _part(value: Mapping[str, Claim]) -> str:
    return urlsafe_b64encode(json.dumps(value, separators=(",", ":")).encode()).rstrip(b"=").decode()
