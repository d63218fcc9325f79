"""Models that are fitted to all events at once: a Ray task, with more of them for what can be done in blocks."""

from __future__ import annotations

from typing import cast

import numpy as np
import torch

from rayrec.data.tasks import by_ray
from rayrec.errors import RayrecError
from rayrec.models.base import Fitted
from rayrec.models.interactions import here
from rayrec.models.registry import model_class
from rayrec.training.job import TrainJob, interactions, load, memory_of, publish


def fit_here(job: TrainJob, threads: int) -> str | RayrecError:
    """Fit the recipe's model on so many threads and publish it, in this process.

    An error is returned: Ray would wrap one that is raised.
    """
    try:
        torch.set_num_threads(threads)
        sequences, dataset = load(job, memory_of(job.recipe))
        # What does not fit into memory is sent to nobody.
        each = by_ray if sequences.empty is np.empty else here
        choice = job.recipe.model
        model = model_class(choice.name)(choice.config, len(sequences.item_keys))
        cast("Fitted", model).fit(interactions(job, sequences), each, job.recipe.training.seed)
        return publish(job, model, sequences, dataset, {"threads": threads})
    except RayrecError as error:
        return error
