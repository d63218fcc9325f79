"""Models without graphs: writing one takes longer than all else that is done with a small model."""

from __future__ import annotations

import pytest

from rayrec.errors import RayrecError
from rayrec.models.base import Recommender
from rayrec.training.fit import fit_here
from rayrec.training.job import TrainJob


def leave_out_graphs(patch: pytest.MonkeyPatch) -> None:
    """Have models that are trained without workers be published without a graph; torch serves such models."""
    patch.setattr(Recommender, "exports", False)
    patch.setattr("rayrec.training.train.fit_here", _fit_without_graph)


def _fit_without_graph(job: TrainJob, threads: int) -> str | RayrecError:
    """`fit_here`, in the process of a Ray task, which knows nothing of what is patched elsewhere."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Recommender, "exports", False)
        return fit_here(job, threads)
