"""Ports that several clusters on one machine do not take from each other."""

from __future__ import annotations

import random
import socket
from collections.abc import MutableMapping

HAPROXY = ("RAY_SERVE_HAPROXY_METRICS_PORT", "RAY_SERVE_HAPROXY_STATS_PORT")
REPLICAS = ("RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT", "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT")
FALLBACK = "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT"
"""Where HAProxy turns to while there is no replica."""
FIRST, LAST = 20_000, 30_000
"""Below those that systems give to whoever asks for any port, and below Ray Serve's own choice."""
PORTS_OF_A_NODE = 100


def free_port() -> int:
    """A port of localhost that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def choose_haproxy_ports(environment: MutableMapping[str, str]) -> None:
    """Give a cluster's HAProxy ports of its own for statistics and metrics, unless the environment says which."""
    for name in HAPROXY:
        environment.setdefault(name, str(free_port()))


def choose_replica_ports(environment: MutableMapping[str, str]) -> None:
    """The same for the replicas of its Serve.

    Ray Serve begins to count at 30000, and its replicas share ports with whoever listens there already: of two clusters
    on a machine, each would answer requests that were made to the other.
    """
    if not any(name in environment for name in REPLICAS):
        first = _free_ports()
        environment.update(zip(REPLICAS, map(str, (first, first + PORTS_OF_A_NODE - 2)), strict=True))
        environment.setdefault(FALLBACK, str(first + PORTS_OF_A_NODE - 1))


def _free_ports() -> int:
    """The first of as many ports in a row as a node has replicas at most, none of which is listened on now."""
    starts = [*range(FIRST, LAST, PORTS_OF_A_NODE)]
    random.SystemRandom().shuffle(starts)
    free = (start for start in starts if all(map(_is_free, range(start, start + PORTS_OF_A_NODE))))
    # A machine where all are taken has other troubles: any will do.
    return next(free, starts[0])


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("0.0.0.0", port))  # noqa: S104
        except OSError:
            return False
    return True
