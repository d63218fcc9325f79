"""An index of item vectors: the best items of a request, approximately, without a score for every item.

Cells of k-means, of which a request looks through those nearest to it (Jégou, Douze and Schmid, "Product Quantization
for Nearest Neighbor Search", IEEE TPAMI 2011, section IV), with vectors in 8 bits a number (Douze et al., "The Faiss
library", 2024, https://arxiv.org/abs/2401.08281). What it finds is scored again by the vectors as they are. How much of
the exact best it finds depends on the vectors: it is measured.
"""

from __future__ import annotations

import math
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rayrec.artifacts import Json, Storage, open_folder, publish_folder
from rayrec.inference.offered import Limits, Offered
from rayrec.inference.scores import best_by_product
from rayrec.inference.top_k import top_k

if TYPE_CHECKING:
    from rayrec.recipe_serving import Index as IndexSettings

MANIFEST = "index.json"
BEST, SIMILAR = "best", "similar"
CODES = {"int8": "SQ8", "float32": "Flat"}
POINTS_A_CELL = 40
"""Of k-means, as many as faiss asks for; more make it slower and hardly better."""
FETCHED = 2
"""Candidates for each item that is wanted: codes of 8 bits mistake the order of those that are nearly as good."""
MARGIN = 0.01
"""Recall above the floor for which probes are chosen: on other requests it is a little less."""
RECALL_AT = 100
QUERIES_AT_A_TIME = 32
SEED = 1


@dataclass(frozen=True)
class Index:
    """An index in memory: a `rayrec.inference.scores.Source`.

    Attributes:
        cells: What faiss holds; ids are item rows.
        probes: Cells that a request looks through.
    """

    cells: Any
    probes: int

    def candidates(self, query: np.ndarray, k: int, within: Offered) -> np.ndarray:
        """See `Source`. Where few of the items are allowed, more cells are looked through."""
        import faiss

        share = max(within.count, 1) / len(within.allowed)
        probes = min(self.cells.nlist, math.ceil(self.probes / share))
        chosen = faiss.SearchParametersIVF(sel=faiss.IDSelectorBitmap(within.bits), nprobe=probes)
        found = self.cells.search(query[None], FETCHED * k, params=chosen)[1][0]
        return np.asarray(found[found > 0], np.int64)


@dataclass(frozen=True)
class Indexes:
    """The indexes of a model's items.

    Attributes:
        best: Of the vectors that requests' are multiplied with.
        similar: Of the item vectors' directions; None of a model without item vectors.
    """

    best: Index
    similar: Index | None = None


def build_index(matrix: np.ndarray, settings: IndexSettings) -> Any:
    """Put the items into cells.

    Args:
        matrix: ``[V + 1, D]`` float32, the vectors of the items; row 0 is left out.
        settings: How many cells, and how they hold vectors.
    """
    import faiss

    items = np.ascontiguousarray(matrix[1:])
    count = min(settings.cells or math.ceil(4 * math.sqrt(len(items))), len(items))
    cells = faiss.index_factory(matrix.shape[1], f"IVF{count},{CODES[settings.codes]}", faiss.METRIC_INNER_PRODUCT)
    cells.cp.seed, cells.cp.max_points_per_centroid, cells.cp.min_points_per_centroid = SEED, POINTS_A_CELL, 1
    cells.train(items)
    cells.add_with_ids(items, np.arange(1, len(matrix)))
    return cells


def measured_index(matrix: np.ndarray, queries: np.ndarray, settings: IndexSettings) -> tuple[Index, Json]:
    """Build an index, and measure it.

    Args:
        matrix: ``[V + 1, D]`` float32, the vectors of the items.
        queries: ``[n, D]`` float32, of requests. The number of probes is chosen by every other of them, and what is
            measured is measured on the rest.
        settings: How.

    Returns:
        The index, and what a Release says of it.
    """
    # Of all items everything would find all.
    cells, k = build_index(matrix, settings), max(1, min(RECALL_AT, (len(matrix) - 1) // 10))
    chosen, measured = queries[::2], queries[1::2] if len(queries) > 1 else queries
    target = min(settings.recall_floor + MARGIN, 1.0)
    probes = min(settings.probes or _fewest_probes(cells, matrix, chosen, k, target), cells.nlist)
    index = Index(cells, probes)
    recall = recall_at(index, matrix, measured, best_rows(matrix, measured, k))
    about = {"recall": recall, "k": k, "queries": len(measured), "floor": settings.recall_floor}
    return index, {**about, "cells": cells.nlist, "probes": probes, "codes": settings.codes}


def _fewest_probes(cells: Any, matrix: np.ndarray, queries: np.ndarray, k: int, target: float) -> int:
    """The fewest that reach a recall, or all where none do."""
    exact, low, high = best_rows(matrix, queries, k), 0, 1

    def reaches(probes: int) -> bool:
        return recall_at(Index(cells, probes), matrix, queries, exact) >= target

    while high < cells.nlist and not reaches(high):
        low, high = high, min(2 * high, cells.nlist)
    while high - low > 1:
        between = (low + high) // 2
        low, high = (low, between) if reaches(between) else (between, high)
    return high


def best_rows(matrix: np.ndarray, queries: np.ndarray, k: int) -> np.ndarray:
    """The best items by the scores of all: ``[n, D]`` float32 to ``[n, k]`` int64."""
    found = []
    for first in range(0, len(queries), QUERIES_AT_A_TIME):
        scores = queries[first : first + QUERIES_AT_A_TIME] @ matrix.T
        scores[:, 0] = -np.inf
        found.append(top_k(scores, k)[0])
    return np.concatenate(found)


def recall_at(index: Index, matrix: np.ndarray, queries: np.ndarray, exact: np.ndarray) -> float:
    """Share of the best items, ``[n, k]``, that are found for queries ``[n, D]``, averaged over them."""
    anything, k = Limits(Offered.everything(len(matrix) - 1)), exact.shape[1]
    shares = [
        len(np.intersect1d(best_by_product(query, matrix, k, index, anything)[0], best)) / k
        for query, best in zip(queries, exact, strict=True)
    ]
    return float(np.mean(shares))


def publish_indexes(storage: Storage, name: str, indexes: Indexes, about: Json, lineage: Json) -> str:
    """Write indexes, with what `measured_index` says of each by its name.

    Returns:
        Their path, ``indexes/NAME/DIGEST``.
    """
    import faiss

    with tempfile.TemporaryDirectory() as folder:
        for kind in about:
            faiss.write_index(getattr(indexes, kind).cells, str(Path(folder, f"{kind}.faiss")))
        return publish_folder(storage, f"indexes/{name}", Path(folder), {**about, **lineage}, MANIFEST)


def open_indexes(storage: Storage, path: str) -> Indexes:
    """Published indexes, checked.

    Raises:
        ModelError: They are damaged or gone.
    """
    import faiss

    folder, manifest = open_folder(storage, path, MANIFEST)
    kinds = [kind for kind in (BEST, SIMILAR) if kind in manifest]
    return Indexes(
        **{kind: Index(faiss.read_index(str(folder / f"{kind}.faiss")), manifest[kind]["probes"]) for kind in kinds}
    )
