"""Models that are fitted to all events at once: a Ray task, with more of them for what can be done in blocks."""

from __future__ import annotations

from typing import cast

import torch

from rayrec.data.tasks import by_ray
from rayrec.errors import RayrecError
from rayrec.models.base import Fitted
from rayrec.models.registry import model_class
from rayrec.training.job import TrainJob, interactions, load, publish


def fit_here(job: TrainJob, threads: int) -> str | RayrecError:
    """Fit the recipe's model on so many threads and publish it, in this process.

    An error is returned: Ray would wrap one that is raised.
    """
    try:
        torch.set_num_threads(threads)
        sequences, dataset = load(job)
        choice = job.recipe.model
        model = model_class(choice.name)(choice.config, len(sequences.item_keys))
        cast("Fitted", model).fit(interactions(job, sequences), by_ray, job.recipe.training.seed)
        return publish(job, model, sequences, dataset, {"threads": threads})
    except RayrecError as error:
        return error
