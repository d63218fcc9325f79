"""What a training is judged by after each epoch: full ranking of the validation fold."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable

from rayrec.data.dataset import Dataset
from rayrec.data.views import Sequences, open_view
from rayrec.evaluation.full_ranking import HeldOut, rank_users
from rayrec.evaluation.held_out import held_out, with_features
from rayrec.inference.runtime import TorchRuntime
from rayrec.metrics.ranking import parse_metric, ranking_metrics
from rayrec.metrics.ranks import NoNumberError
from rayrec.models.base import Recommender
from rayrec.models.registry import model_class
from rayrec.recipe import Recipe
from rayrec.training.job import TrainJob
from rayrec.training.progress import Metrics
from rayrec.training.world import World

_LOG = logging.getLogger(__name__)


def validated_users(job: TrainJob, dataset: Dataset, sequences: Sequences) -> HeldOut | None:
    """The users with validation events; None where there are none, or they are learnt from."""
    if job.epochs is not None or "validation" in job.folds:
        return None
    if not open_view(dataset, job.view)["counts"]["validation"]:
        return None
    reads = model_class(job.recipe.model.name).features
    return with_features(held_out(sequences, "validation"), reads, dataset, job.view, sequences, "validation")


def validator(recipe: Recipe, users: HeldOut | None, world: World) -> Callable[[Recommender], Metrics]:
    """Full ranking of `validated_users`, shared out among the workers; nothing where there are none."""
    if users is None:
        return lambda model: {}
    metric = recipe.training.metric
    k, mine = parse_metric(metric)[1], users.part(world.rank, world.size)

    def validate(model: Recommender) -> Metrics:
        score, seen = TorchRuntime(model).on_device, recipe.evaluation.exclude_seen
        try:
            ranked = rank_users(score, mine, model.num_items, model.max_length, k, seen)
        except NoNumberError as error:
            # One worker may see it alone: it is told of by a metric that is none on all.
            _LOG.warning("training: %s", error)
            return {metric: world.sum([math.nan, 0.0])[0]}
        means = ranking_metrics(ranked.ranks, [k]) if len(ranked.ranks) else {metric: 0.0}
        total, count = world.sum([means[metric] * len(ranked.ranks), float(len(ranked.ranks))])
        return {metric: total / max(1.0, count)}

    return validate
