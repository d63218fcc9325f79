"""Writes events and tells of each one that is acknowledged, until it is killed: ``writer.py URL``."""

from __future__ import annotations

import sys
import uuid
from concurrent.futures import ThreadPoolExecutor

from rayrec.serving.state import Event
from rayrec.serving.store.store import Store

store = Store(sys.argv[1])


def write(number: int) -> None:
    event = Event(uuid.uuid4().hex, f"u{number % 7}", f"i{number % 5}", "view", number)
    store.append([event])
    sys.stdout.write(event.event_id + "\n")
    sys.stdout.flush()


with ThreadPoolExecutor(8) as threads:
    for number in range(1_000_000):
        threads.submit(write, number)
