"""What may be shown: the best items of several sources, each once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from rayrec.serving.funnel.compiled import compiled

FUSED = 60
"""What reciprocal rank fusion adds to a place (Cormack, Clarke & Buettcher, SIGIR 2009)."""


@dataclass(frozen=True)
class Gathered:
    """Candidates of a batch of requests.

    Attributes:
        names: Of the ``S`` sources.
        rows: ``[B, C]`` int64 item rows, those of the first source first; 0 behind the last one.
        places: ``[B, S, C]`` int64: the place of each candidate in each source, from 1; 0 where it does not have it.
    """

    names: Sequence[str]
    rows: np.ndarray
    places: np.ndarray

    def by_ranks(self) -> np.ndarray:
        """The sum over the sources of the inverse of each place: ``[B, C]`` float64."""
        found: np.ndarray = np.where(self.places > 0, 1 / (FUSED + self.places), 0).sum(axis=1)
        return found

    def sources(self, request: int, candidate: int) -> dict[str, int]:
        """Which sources a candidate comes from, with its place in each."""
        places = self.places[request, :, candidate].tolist()
        return {name: place for name, place in zip(self.names, places, strict=True) if place}


def gather(given: Mapping[str, np.ndarray], quotas: Mapping[str, int], num_items: int) -> Gathered:
    """Put candidates together.

    Args:
        given: By the name of the source, ``[B, n]`` int64 item rows, best first; 0 is passed over.
        quotas: How many are taken of each.
        num_items: The highest row that there may be.
    """
    offered = np.concatenate([*given.values()], axis=1, dtype=np.int64)
    batch, most = len(offered), [quotas[name] for name in given]
    rows, places = np.zeros((batch, sum(most)), np.int64), np.zeros((batch, len(most), sum(most)), np.int64)
    ends = np.cumsum([one.shape[1] for one in given.values()])
    _merge(offered, ends, np.array(most, np.int64), np.zeros(num_items + 1, np.int32), rows, places)
    return Gathered([*given], rows, places)


@compiled("void(i8[:,::1], i8[::1], i8[::1], i4[::1], i8[:,::1], i8[:,:,::1])")
def _merge(
    offered: np.ndarray, ends: np.ndarray, quotas: np.ndarray, seen: np.ndarray, rows: np.ndarray, places: np.ndarray
) -> None:
    """`gather`, into the last two.

    Args:
        offered: ``[B, n]``, what the sources give, side by side.
        ends: ``[S]``, where each ends.
        quotas: ``[S]``.
        seen: ``[V + 1]`` zeros: where each item stands among the candidates, from 1; zeros again when this ends.
        rows: ``[B, C]`` zeros, see `Gathered`.
        places: ``[B, S, C]`` zeros, likewise.
    """
    for request in range(len(offered)):
        count, begin = 0, 0
        for source in range(len(ends)):
            place = 0
            for row in offered[request, begin : ends[source]]:
                if place == quotas[source]:
                    break
                if row == 0:
                    continue
                place += 1
                if seen[row] == 0:
                    rows[request, count] = row
                    count += 1
                    seen[row] = count
                places[request, source, seen[row] - 1] = place
            begin = ends[source]
        for row in rows[request, :count]:
            seen[row] = 0
