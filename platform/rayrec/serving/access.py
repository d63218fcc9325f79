"""Who may ask: the key that a request carries, what that allows, and how often."""

from __future__ import annotations

import time
from dataclasses import dataclass

from fastapi import Request

from rayrec.serving.store.keys import Key, Keyring, Scope

OPEN = frozenset({"/v1/health", "/v1/ready", "/api/health/live", "/api/health/ready"})
"""Probes, which load balancers make without a key."""
READING = ("/v1/session/recommend", "/v1/basket/recommend", "/v1/rank", "/api/session/recommend")
"""POST only because what is asked is long."""
ERASING = ("/v1/users/", "/api/user/")
NOBODY = "nobody"
"""Who acts where there are no keys."""


@dataclass
class _Bucket:
    """Requests that are left of a minute's, which come back one by one."""

    left: float
    at: float


class Gate:
    """Lets requests pass by their keys, in one replica."""

    def __init__(self) -> None:
        self._buckets: dict[str, _Bucket] = {}

    def refusal(self, request: Request, keyring: Keyring) -> tuple[int, str] | None:
        """A status and a message for a request that may not pass; whoever asks is noted in its state."""
        request.state.actor = NOBODY
        if not keyring.required or request.url.path in OPEN:
            return None
        key = keyring.find(given(request))
        if key is None:
            return 401, "this needs an API key: send it as X-API-Key, or as Authorization: Bearer."
        request.state.actor = f"key {key.key_id}"
        scope = needed(request)
        if scope not in key.scopes:
            return 403, f"this needs a key with the scope '{scope}'."
        if not self._within(key):
            return 429, f"this key may ask {key.rate} times a minute."
        return None

    def _within(self, key: Key) -> bool:
        """Whether a request is within the key's rate, which it then counts against."""
        if key.rate is None:
            return True
        now = time.monotonic()
        bucket = self._buckets.setdefault(key.key_id, _Bucket(key.rate, now))
        bucket.left = min(key.rate, bucket.left + (now - bucket.at) * key.rate / 60)
        bucket.at = now
        if bucket.left < 1:
            return False
        bucket.left -= 1
        return True


def given(request: Request) -> str:
    """The key that a request carries, or nothing."""
    scheme, _, bearer = request.headers.get("authorization", "").partition(" ")
    return request.headers.get("x-api-key") or (bearer.strip() if scheme.lower() == "bearer" else "")


def needed(request: Request) -> Scope:
    """What a key must allow for a request."""
    method, path = request.method, request.url.path
    if method == "DELETE" and path.startswith(ERASING):
        return "admin"
    if method in {"GET", "HEAD", "OPTIONS"}:
        return "write" if request.query_params.get("write-back-type") else "read"
    return "read" if method == "POST" and path.startswith(READING) else "write"
