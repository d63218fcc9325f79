"""Models of other libraries on a view of rayrec's, measured by a few lines that share nothing with rayrec.

    PYTHON benchmarks/peers.py VIEW.npz implicit-als rectools-ease --metrics hr@10 ndcg@10

VIEW.npz is what `benchmarks/bare.py export` writes. PYTHON needs implicit==0.7.3 and rectools==0.19.0, not rayrec.
Prints JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# What implicit asks for: its own threads and those of BLAS would get in each other's way. Read when numpy loads.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
from scipy import sparse

Matrix = sparse.csr_matrix
Lists = np.ndarray

BATCH = 512


def matrix_of(view: dict[str, np.ndarray], folds: tuple[int, ...]) -> Matrix:
    """Users by items (from 0), 1 where there is an event of these folds."""
    users = np.repeat(np.arange(len(view["offsets"]) - 1), np.diff(view["offsets"]))
    chosen = np.isin(view["folds"], folds)
    shape = (len(view["offsets"]) - 1, int(view["num_items"]))
    found = sparse.csr_matrix((np.ones(chosen.sum(), np.float32), (users[chosen], view["items"][chosen] - 1)), shape)
    found.data[:] = 1
    return found


def implicit_model(make: Callable[[], Any], **asked: Any) -> Callable[[Matrix, Matrix, int], Lists]:
    """A model of implicit, asked with the user's whole past."""

    def lists(train: Matrix, past: Matrix, k: int) -> Lists:
        model = make()
        model.fit(train, show_progress=False)
        users = np.arange(past.shape[0])
        found: Lists = model.recommend(users, past, N=k, filter_already_liked_items=True, **asked)[0]
        return found

    return lists


def bm25(train: Matrix, past: Matrix, k: int) -> Lists:
    """Item-based neighbours of implicit by BM25: 100 of each, and the item itself, which it counts among them."""
    from implicit.nearest_neighbours import BM25Recommender

    return implicit_model(lambda: BM25Recommender(K=101, K1=1.2, B=0.75))(train, past, k)


def als(train: Matrix, past: Matrix, k: int) -> Lists:
    """ALS of implicit with 64 factors, users folded in."""
    from implicit.cpu.als import AlternatingLeastSquares

    return implicit_model(lambda: AlternatingLeastSquares(factors=64, random_state=0), recalculate_user=True)(
        train, past, k
    )


def bpr(train: Matrix, past: Matrix, k: int) -> Lists:
    """BPR of implicit with 64 factors and users as trained."""
    from implicit.cpu.bpr import BayesianPersonalizedRanking

    return implicit_model(lambda: BayesianPersonalizedRanking(factors=64, random_state=0))(train, past, k)


def ease(train: Matrix, past: Matrix, k: int) -> Lists:
    """RecTools' EASE."""
    import pandas as pd
    from rectools import Columns
    from rectools.dataset import Dataset
    from rectools.models import EASEModel

    rows, columns = train.nonzero()
    events = {Columns.User: rows, Columns.Item: columns, Columns.Weight: 1.0, Columns.Datetime: pd.Timestamp(0)}
    dataset = Dataset.construct(pd.DataFrame(events))
    model = EASEModel(regularization=500.0)
    model.fit(dataset)
    known = dataset.item_id_map.external_ids.astype(np.int64)
    weight = np.zeros((train.shape[1], train.shape[1]), np.float32)
    weight[np.ix_(known, known)] = model.weight
    lists = []
    for start in range(0, past.shape[0], BATCH):
        part = past[start : start + BATCH]
        scores = np.asarray(part @ weight)
        scores[part.nonzero()] = -np.inf
        lists.append(np.argsort(-scores, axis=1, kind="stable")[:, :k])
    return np.concatenate(lists)


PEERS = {"implicit-bm25": bm25, "implicit-als": als, "implicit-bpr": bpr, "rectools-ease": ease}


def measure(lists: Lists, past: Matrix, future: Matrix, metrics: list[str]) -> dict[str, float]:
    """Means over the users with something new to find."""
    new = future - future.multiply(past)
    new.eliminate_zeros()
    sums, users = dict.fromkeys(metrics, 0.0), 0
    for user, recommended in enumerate(lists):
        wanted = set(new.indices[new.indptr[user] : new.indptr[user + 1]])
        if not wanted:
            continue
        users += 1
        for metric in metrics:
            name, _, cut = metric.partition("@")
            k = int(cut)
            places = [place for place, item in enumerate(recommended[:k]) if item in wanted]
            ideal = sum(1 / np.log2(place + 2) for place in range(min(k, len(wanted))))
            value = {
                "hr": float(bool(places)),
                "recall": len(places) / len(wanted),
                "ndcg": sum(1 / np.log2(place + 2) for place in places) / ideal,
            }[name]
            sums[metric] += value
    return {metric: total / users for metric, total in sums.items()}


def main() -> None:
    """Fit, ask, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("view", type=Path)
    parser.add_argument("peers", nargs="+", choices=PEERS)
    parser.add_argument("--metrics", nargs="+", default=["hr@10", "ndcg@10"])
    parser.add_argument("--learn-validation", action="store_true")
    arguments = parser.parse_args()
    with np.load(arguments.view, allow_pickle=False) as stored:
        view = {name: stored[name] for name in stored.files}
    train = matrix_of(view, (0, 1) if arguments.learn_validation else (0,))
    past, future = matrix_of(view, (0, 1)), matrix_of(view, (2,))
    results = {}
    for name in arguments.peers:
        began = time.perf_counter()
        lists = PEERS[name](train, past, max(int(metric.partition("@")[2]) for metric in arguments.metrics))
        seconds = time.perf_counter() - began
        results[name] = {"metrics": measure(lists, past, future, arguments.metrics), "seconds": seconds}
    print(json.dumps(results))


if __name__ == "__main__":
    main()
