"""The evaluate stage: a bundle and a view -> metrics on the held-out events."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import ray

from rayrec.artifacts import Json, Storage
from rayrec.data.dataset import open_dataset
from rayrec.data.splits import TRAIN
from rayrec.data.views import load_view
from rayrec.errors import DataError, RayrecError
from rayrec.evaluation.full_ranking import RankedUsers, ScoreFunction, rank_users
from rayrec.evaluation.held_out import held_out
from rayrec.inference.bundle import open_bundle
from rayrec.inference.scorer import Scorer
from rayrec.metrics.beyond_accuracy import coverage, popularity_bias
from rayrec.metrics.ranking import METRICS, parse_metric
from rayrec.recipe import Recipe

FOLDS = ("validation", "test")


def evaluate(
    recipe: Recipe,
    dataset_version: tuple[str, int],
    view: str,
    bundle: str,
    storage: Storage,
    bundle_storage: Storage | None = None,
) -> Json:
    """Metrics of a bundle on the validation and the test fold.

    Args:
        recipe: Its `evaluation` section is read.
        dataset_version: Name and manifest number of the Dataset.
        view: Digest of the view.
        bundle: Path of the bundle.
        storage: Where they are.
        bundle_storage: Where the bundle is, if not there too.

    Returns:
        By fold: every metric at every cut-off, ``coverage@k`` and ``popularity_bias@k``, ``users``, and
        ``by_history_length``: the same accuracy metrics for users with histories of like length.

    Raises:
        DataError: Nobody can be ranked, or the Dataset is damaged.
        ModelError: The bundle is damaged.
    """
    task = ray.remote(num_cpus=1)(evaluate_here)
    try:
        result: Json = ray.get(task.remote(recipe, dataset_version, view, bundle, storage, bundle_storage))
    except ray.exceptions.RayTaskError as error:
        # Ray puts the worker's traceback into the message; ours must arrive as it was.
        if isinstance(error.cause, RayrecError):
            raise error.cause from error
        raise
    return result


def evaluate_here(
    recipe: Recipe,
    dataset_version: tuple[str, int],
    view: str,
    bundle: str,
    storage: Storage,
    bundle_storage: Storage | None = None,
) -> Json:
    """`evaluate` in this process."""
    sequences = load_view(open_dataset(storage, *dataset_version), view)
    scorer = open_bundle(bundle_storage or storage, bundle).scorer()
    score = _aligned(scorer, sequences.item_keys)
    popularity = np.bincount(sequences.fold(TRAIN).items, minlength=len(sequences.item_keys) + 1)
    settings = recipe.evaluation
    results: Json = {}
    for fold in FOLDS:
        users = held_out(sequences, fold)
        top = max([*settings.ks, parse_metric(recipe.training.metric)[1]])
        ranked = rank_users(score, users, scorer.max_length, top, settings.exclude_seen)
        if not len(ranked.ranks):
            raise DataError(
                f"evaluation: no user of the {fold} fold can be ranked: all its events are on items they already had. "
                "Set evaluation.exclude_seen to false, or split otherwise."
            )
        results[fold] = _summary(recipe, ranked, popularity) | {"left_out": len(users.past) - len(ranked.ranks)}
    return results


def _aligned(scorer: Scorer, item_keys: Sequence[str]) -> ScoreFunction:
    """The model's scores by the rows of a view, which may have other items than the model was trained on.

    An item the model does not know is passed over in histories and ranks behind all others, so that an older model can
    be measured on the events of today.
    """
    if list(scorer.item_keys) == list(item_keys):
        return scorer.runtime
    rows = np.array([0, *(scorer.rows.get(key, 0) for key in item_keys)], dtype=np.int64)

    def score(history: np.ndarray) -> np.ndarray:
        scores = scorer.score([known[known != 0] for known in rows[history]])
        return np.asarray(scores[:, rows])

    return score


def _summary(recipe: Recipe, ranked: RankedUsers, popularity: np.ndarray) -> Json:
    names = recipe.metric_names
    summary: Json = _accuracy(ranked.ranks, names)
    for k in sorted(set(recipe.evaluation.ks)):
        summary[f"coverage@{k}"] = coverage(ranked.recommended[:, :k], len(popularity) - 1)
        summary[f"popularity_bias@{k}"] = popularity_bias(ranked.recommended[:, :k], popularity)
    slices = {}
    bounds = [-1, 0, *sorted(recipe.evaluation.history_lengths), np.inf]
    for low, high in pairwise(bounds):
        inside = (ranked.past_lengths > low) & (ranked.past_lengths <= high)
        label = f">{int(low)}" if np.isinf(high) else f"{int(low) + 1}-{int(high)}" if high else "0"
        if inside.any():
            slices[label] = {"users": int(inside.sum()), **_accuracy(ranked.ranks[inside], names)}
    return {**summary, "users": len(ranked.ranks), "by_history_length": slices}


def _accuracy(ranks: np.ndarray, names: Sequence[str]) -> dict[str, float]:
    return {name: float(np.mean(METRICS[metric](ranks, k))) for name in names for metric, k in [parse_metric(name)]}
