"""Popularity: counts, the same for everybody."""

from __future__ import annotations

import numpy as np
import torch

from rayrec.models.base import Fitted, GradientTrained
from rayrec.models.popularity import Popularity, PopularityConfig


def test_an_items_score_is_its_number_of_events() -> None:
    model = Popularity(PopularityConfig(), num_items=4)
    model.fit(np.array([2, 2, 3, 2, 4]))
    assert model.score(torch.zeros(1, 1, dtype=torch.int64)).tolist() == [[0, 0, 3, 1, 1]]


def test_the_history_changes_nothing() -> None:
    model = Popularity(PopularityConfig(), num_items=3)
    model.fit(np.array([1, 3]))
    scores = model.score(torch.tensor([[0, 1], [2, 3], [0, 0]]))
    assert scores.shape == (3, 4)
    assert (scores == scores[0]).all()


def test_fitting_again_forgets_the_first_counts() -> None:
    model = Popularity(PopularityConfig(), num_items=2)
    for items in ([1, 1, 1], [2]):
        model.fit(np.array(items))
    assert model.score(torch.zeros(1, 1, dtype=torch.int64)).tolist() == [[0, 0, 1]]


def test_without_events_every_item_scores_zero() -> None:
    model = Popularity(PopularityConfig(), num_items=2)
    model.fit(np.zeros(0, np.int64))
    assert model.score(torch.zeros(1, 1, dtype=torch.int64)).tolist() == [[0, 0, 0]]


def test_it_is_fitted_not_trained() -> None:
    model = Popularity(PopularityConfig(), num_items=2)
    assert isinstance(model, Fitted)
    assert not isinstance(model, GradientTrained) or not list(model.parameters())
