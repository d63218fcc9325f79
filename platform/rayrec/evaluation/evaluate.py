"""The evaluate stage: a bundle and a view -> metrics on the held-out events."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import ray

from rayrec.artifacts import Json, Storage
from rayrec.data.dataset import Dataset, open_dataset
from rayrec.data.interactions import event_column
from rayrec.data.item_features import item_features
from rayrec.data.splits import TRAIN
from rayrec.data.tasks import by_ray, result
from rayrec.data.user_features import check_features
from rayrec.data.user_groups import user_groups
from rayrec.data.views import Sequences, load_view
from rayrec.errors import DataError, ModelError
from rayrec.evaluation.full_ranking import HeldOut, RankedUsers, ScoreFunction, rank_users
from rayrec.evaluation.held_out import FUTURE, held_out, with_features
from rayrec.evaluation.leakage import after_test, repeated_events
from rayrec.evaluation.outcomes import write_outcomes
from rayrec.evaluation.slices import accuracy, by_group, by_history_length, by_popularity
from rayrec.features.hashing import mix64
from rayrec.inference.bundle import open_bundle
from rayrec.inference.inputs import Context, Inputs
from rayrec.inference.scorer import Scorer
from rayrec.metrics.beyond_accuracy import coverage, gini, intra_list_diversity, novelty, popularity_bias
from rayrec.metrics.ranking import parse_metric
from rayrec.metrics.significance import bootstrap_interval
from rayrec.models.interactions import Each, blocks_of, here
from rayrec.recipe import Evaluation

USERS_A_TASK = 5_000
DIMENSIONS = 256
"""Of the vectors by which items are compared: a million items take 1 GiB."""


@dataclass(frozen=True)
class Measure:
    """What is measured on what.

    Attributes:
        settings: How it is measured.
        metrics: Accuracy metrics with their cut-offs, such as ``ndcg@10``.
        dataset_version: Name and manifest number of the Dataset.
        view: Digest of the view.
        storage: Where they are, and where outcomes go.
        bundle: Path of the bundle.
        bundle_storage: Where the bundle is.
        folds: On which.
    """

    settings: Evaluation
    metrics: tuple[str, ...]
    dataset_version: tuple[str, int]
    view: str
    storage: Storage
    bundle: str
    bundle_storage: Storage
    folds: tuple[str, ...] = tuple(FUTURE)


def evaluate(measure: Measure) -> Json:
    """Metrics of a bundle on the held-out folds.

    Returns:
        By fold, where it has events: every metric at every cut-off, averaged over
        users; ``coverage``, ``popularity_bias``, ``novelty``, ``gini`` and, where items have declared features,
        ``diversity`` at every cut-off; ``users``, and how many were ``left_out``; ``intervals``, within which each
        accuracy metric's mean lies with 95 % confidence; ``slices``, accuracy of groups of users and items;
        ``repeated``, how many held-out events are on items that the user had in training; ``outcomes``, the file with
        the ranks of every user; and of the test fold, where events have times, ``after_test``
        (`rayrec.evaluation.leakage`).

    Raises:
        DataError: Nobody can be ranked, or the Dataset is damaged.
        ModelError: The bundle is damaged, was trained on what it is to be measured on, or reads other features of users
            or of the context than the view has.
    """
    measured: Json = result(ray.remote(num_cpus=1)(evaluate_here).remote(measure, by_ray))
    return measured


def evaluate_here(measure: Measure, each: Each = here) -> Json:
    """`evaluate` in this process; ``each`` shares out users."""
    dataset = open_dataset(measure.storage, *measure.dataset_version)
    sequences = load_view(dataset, measure.view)
    bundle = open_bundle(measure.bundle_storage, measure.bundle)
    _check_not_learnt(measure, bundle.manifest, dataset)
    check_features(bundle.manifest, measure.bundle, dataset, measure.view)
    vectors, results = item_vectors(dataset, measure.view), {}
    for fold in measure.folds:
        if not (sequences.folds == FUTURE[fold]).any():
            continue
        users = held_out(sequences, fold)
        users = with_features(users, bundle.widths, dataset, measure.view, sequences, fold)
        blocks = blocks_of(len(users), USERS_A_TASK)
        ranked = RankedUsers.joined(list(each(_rank, (measure, sequences.item_keys, users), blocks)))
        if not len(ranked.ranks):
            raise DataError(
                f"evaluation: no user of the {fold} fold can be ranked: all its events are on items they already had. "
                "Set evaluation.exclude_seen to false, or split otherwise."
            )
        results[fold] = {
            **_summary(measure, ranked, sequences, vectors),
            "left_out": len(users) - len(ranked.ranks),
            "slices": _slices(measure, dataset, ranked, sequences),
            "repeated": repeated_events(users),
            "outcomes": write_outcomes(measure.storage, measure.dataset_version[0], ranked, sequences),
        }
    if "test" not in results:
        raise DataError("evaluation: the view has no test events. Choose another data.split and prepare again.")
    if dataset.manifest["order"] == "timestamp":
        timestamps = event_column(dataset, measure.view, "timestamps")
        results["test"]["after_test"] = after_test(sequences, timestamps)
    return results


def _check_not_learnt(measure: Measure, manifest: Json, dataset: Dataset) -> None:
    """What a model has learnt from says nothing of what it would do with something new.

    Raises:
        ModelError: The model was trained on a fold that it is to be measured on.
    """
    if (manifest["dataset"]["digest"], manifest["view"]) != (dataset.digest, measure.view):
        return
    learnt = [fold for fold in measure.folds if fold in manifest["training"].get("folds", ())]
    if learnt:
        raise ModelError(
            f"evaluation: {measure.bundle} was trained on the {' and '.join(learnt)} events that it is to be measured "
            "on. Measure the model before it was trained again: `served.evaluated` of its Release."
        )


def item_vectors(dataset: Dataset, view: str) -> np.ndarray | None:
    """``[V + 1, F]`` float32, what is declared of each item; None where nothing is.

    More than `DIMENSIONS` columns are hashed into as many, with signs, which leaves cosines as they are but for chance
    (Weinberger et al., ICML 2009).
    """
    features = item_features(dataset, view)
    if features is None:
        return None
    width, columns, values = features.width, features.columns, features.values
    if width > DIMENSIONS:
        hashed = mix64(columns.astype(np.uint64))
        columns = (hashed % np.uint64(DIMENSIONS)).astype(np.int64)
        width, values = DIMENSIONS, np.where(hashed >> np.uint64(63), values, -values)
    vectors = np.zeros((len(features), width), np.float32)
    np.add.at(vectors, (features.rows, columns), values)
    return vectors


def _rank(shared: tuple[Measure, Sequence[str], HeldOut], block: range) -> RankedUsers:
    """Rank the users of a block."""
    measure, item_keys, users = shared
    # Several blocks share the cores out among them.
    threads = 1 if len(users) > USERS_A_TASK else 0
    scorer = open_bundle(measure.bundle_storage, measure.bundle).scorer(threads=threads)
    settings = measure.settings
    top = max([*settings.ks, *(parse_metric(name)[1] for name in measure.metrics)])
    mine = users.chosen(slice(block.start, block.stop))
    score = _aligned(scorer, item_keys)
    return rank_users(score, mine, len(item_keys), scorer.max_length, top, settings.exclude_seen)


def _aligned(scorer: Scorer, item_keys: Sequence[str]) -> ScoreFunction:
    """The model's scores by the rows of a view, which may have other items than the model was trained on.

    An item the model does not know is passed over in histories and ranks behind all others, so that an older model can
    be measured on the events of today.
    """
    if list(scorer.item_keys) == list(item_keys):
        return scorer.runtime
    rows = np.array([0, *(scorer.rows.get(key, 0) for key in item_keys)], dtype=np.int64)

    def score(asked: Inputs) -> np.ndarray:
        known, times = rows[asked["history"]], asked["times"]
        features = [{name: asked[name][place] for name in scorer.widths} for place in range(len(known))]
        contexts = [
            Context(np.append(t[:-1][row != 0], t[-1]), **also)
            for row, t, also in zip(known, times, features, strict=True)
        ]
        return np.asarray(scorer.score([row[row != 0] for row in known], contexts)[:, rows])

    return score


def _summary(measure: Measure, ranked: RankedUsers, sequences: Sequences, vectors: np.ndarray | None) -> Json:
    values = accuracy(ranked.ranks, measure.metrics)
    summary: Json = {name: float(column.mean()) for name, column in values.items()}
    popularity = train_counts(sequences)
    for k in sorted(set(measure.settings.ks)):
        lists = ranked.recommended[:, :k]
        summary[f"coverage@{k}"] = coverage(lists, len(popularity) - 1)
        if not lists.any():
            # An older model that knows none of the items left.
            continue
        summary[f"popularity_bias@{k}"] = popularity_bias(lists, popularity)
        summary[f"novelty@{k}"] = novelty(lists, popularity)
        if len(popularity) > 2:
            summary[f"gini@{k}"] = gini(lists, len(popularity) - 1)
        if vectors is not None and ((lists > 0).sum(axis=1) > 1).any():
            summary[f"diversity@{k}"] = intra_list_diversity(lists, vectors)
    return {**summary, "users": len(ranked.ranks), "intervals": _intervals(values)}


def _intervals(values: dict[str, np.ndarray]) -> Json:
    """Low and high of each metric's mean; none where there is one user, of whose like nothing is known."""
    columns = np.stack(list(values.values()), axis=1)
    if len(columns) < 2:
        return {}
    low, high = bootstrap_interval(columns)
    return {name: [float(low[n]), float(high[n])] for n, name in enumerate(values)}


def train_counts(sequences: Sequences) -> np.ndarray:
    """Training events of each item row: ``[V + 1]`` int64."""
    return np.bincount(sequences.fold(TRAIN).items, minlength=len(sequences.item_keys) + 1)


def _slices(measure: Measure, dataset: Dataset, ranked: RankedUsers, sequences: Sequences) -> Json:
    settings, names = measure.settings, measure.metrics
    slices = {
        "history_length": by_history_length(ranked, settings.history_lengths, names),
        "item_popularity": by_popularity(ranked, train_counts(sequences), names),
    }
    groups = partial(user_groups, dataset, measure.view)
    return slices | {f"user.{name}": by_group(ranked, groups(name), names) for name in settings.slices}
