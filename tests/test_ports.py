"""Clusters on one machine do not answer each other's requests."""

from __future__ import annotations

import socket

import pytest

from rayrec import ports
from rayrec.ports import FALLBACK, FIRST, PORTS_OF_A_NODE, REPLICAS, choose_replica_ports


def test_each_cluster_has_ports_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ports, "LAST", FIRST + 2 * PORTS_OF_A_NODE)
    chosen: dict[str, str] = {}
    choose_replica_ports(chosen)
    first, last = (int(chosen[name]) for name in REPLICAS)
    assert last - first == PORTS_OF_A_NODE - 2
    assert int(chosen[FALLBACK]) == last + 1
    with socket.socket() as replica:
        # As replicas of Ray Serve do.
        replica.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        replica.bind(("0.0.0.0", first))  # noqa: S104
        replica.listen()
        others: dict[str, str] = {}
        choose_replica_ports(others)
    assert others[REPLICAS[0]] not in chosen.values()


def test_what_the_environment_says_stays() -> None:
    chosen = {REPLICAS[0]: "5"}
    choose_replica_ports(chosen)
    assert chosen == {REPLICAS[0]: "5"}
