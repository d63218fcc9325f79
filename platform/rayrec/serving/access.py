"""Who may ask: the key that a request carries, what that allows, and how often."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

from fastapi import Request

from rayrec.serving.store.keys import Keyring, Scope

OPEN = frozenset({"/v1/health", "/v1/ready", "/api/health/live", "/api/health/ready"})
"""Probes, which load balancers make without a key."""
READING = ("/v1/session/recommend", "/v1/basket/recommend", "/v1/rank", "/api/session/recommend")
"""POST only because what is asked is long."""
ERASING = ("/v1/users/", "/api/user/")
RECEIPTS = "/v1/erasures"
NOBODY = "nobody"
"""Who acts where there are no keys."""


@dataclass(frozen=True)
class Refusal:
    """Why a request may not pass.

    Attributes:
        status: Of the answer.
        message: For whoever asks.
        again: Seconds after which it may.
    """

    status: int
    message: str
    again: int | None = None


@dataclass
class _Bucket:
    """Requests that are left of a minute's, which come back one by one."""

    left: float
    at: float


class Gate:
    """Lets requests pass by their keys, in one replica."""

    def __init__(self) -> None:
        self._buckets: dict[str, _Bucket] = {}

    def refusal(self, request: Request, keyring: Keyring) -> Refusal | None:
        """Why a request may not pass, if so; whoever asks is noted in its state."""
        request.state.actor = NOBODY
        if not keyring.required or path_of(request) in OPEN:
            return None
        text = given(request)
        key = keyring.find(text)
        if key is None and text:
            return Refusal(401, "this API key is not good: it is another, or was rotated or revoked.")
        if key is None:
            return Refusal(401, "this needs an API key: send it as X-API-Key, or as Authorization: Bearer.")
        request.state.actor = f"key {key.key_id}"
        scope = needed(request)
        if scope not in key.scopes:
            return Refusal(403, f"this needs a key with the scope '{scope}'.")
        if key.rate is not None and not self._within(key.key_id, key.rate):
            return Refusal(429, f"this key may ask {key.rate} times a minute.", math.ceil(60 / key.rate))
        return None

    def _within(self, key_id: str, rate: int) -> bool:
        """Whether a request is within a key's rate, which it then counts against."""
        now = time.monotonic()
        bucket = self._buckets.setdefault(key_id, _Bucket(rate, now))
        bucket.left = min(rate, bucket.left + (now - bucket.at) * rate / 60)
        bucket.at = now
        if bucket.left < 1:
            return False
        bucket.left -= 1
        return True


def path_of(request: Request) -> str:
    """The path that routes are found by; Starlette's own URL is made with a header that clients choose."""
    return str(request.scope["path"])


def given(request: Request) -> str:
    """The key that a request carries, or nothing."""
    scheme, _, bearer = request.headers.get("authorization", "").partition(" ")
    return request.headers.get("x-api-key") or (bearer.strip() if scheme.lower() == "bearer" else "")


def needed(request: Request) -> Scope:
    """What a key must allow for a request."""
    method, path = request.method, path_of(request)
    if path.startswith(RECEIPTS) or (method == "DELETE" and path.startswith(ERASING)):
        return "admin"
    if method in {"GET", "HEAD", "OPTIONS"}:
        return "write" if request.query_params.get("write-back-type") else "read"
    return "read" if method == "POST" and path.startswith(READING) else "write"
