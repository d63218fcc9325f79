"""Popularity: counts, the same for everybody."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rayrec.errors import DataError
from rayrec.features.histories import Histories
from rayrec.models.base import Fitted, GradientTrained
from rayrec.models.interactions import Interactions, here
from rayrec.models.popularity import Popularity, PopularityConfig

DAY = 24 * 3600


def fit(
    model: Popularity, items: list[int], times: list[int] | None = None, weights: list[float] | None = None
) -> None:
    given = Histories.grouped(np.array([len(items)]), np.array(items), None if times is None else np.array(times))
    weighed = None if weights is None else np.array(weights)
    model.fit(Interactions(given, model.num_items, weighed), here, seed=0)


def test_an_items_score_is_its_number_of_events() -> None:
    model = Popularity(PopularityConfig(), num_items=4)
    fit(model, [2, 2, 3, 2, 4])
    assert model.score(torch.zeros(1, 1, dtype=torch.int64)).tolist() == [[0, 0, 3, 1, 1]]


def test_the_history_changes_nothing() -> None:
    model = Popularity(PopularityConfig(), num_items=3)
    fit(model, [1, 3])
    scores = model.score(torch.tensor([[0, 1], [2, 3], [0, 0]]))
    assert scores.shape == (3, 4)
    assert (scores == scores[0]).all()


def test_fitting_again_forgets_the_first_counts() -> None:
    model = Popularity(PopularityConfig(), num_items=2)
    for items in ([1, 1, 1], [2]):
        fit(model, items)
    assert model.score(torch.zeros(1, 1, dtype=torch.int64)).tolist() == [[0, 0, 1]]


def test_without_events_every_item_scores_zero() -> None:
    model = Popularity(PopularityConfig(), num_items=2)
    fit(model, [])
    assert model.score(torch.zeros(1, 1, dtype=torch.int64)).tolist() == [[0, 0, 0]]


def test_it_is_fitted_not_trained() -> None:
    model = Popularity(PopularityConfig(), num_items=2)
    assert isinstance(model, Fitted)
    assert not isinstance(model, GradientTrained) or not list(model.parameters())


def test_with_a_half_life_an_old_event_counts_less() -> None:
    model = Popularity(PopularityConfig(half_life=2.0), num_items=2)
    fit(model, [1, 1, 2], times=[0, 2 * DAY, 4 * DAY])
    assert model.score(torch.zeros(1, 1, dtype=torch.int64)).tolist() == [[0, 0.25 + 0.5, 1]]


def test_an_event_counts_as_much_as_its_weight() -> None:
    model = Popularity(PopularityConfig(), num_items=2)
    fit(model, [1, 1, 2], weights=[0.5, 1.0, 4.0])
    assert model.score(torch.zeros(1, 1, dtype=torch.int64)).tolist() == [[0, 1.5, 4]]


def test_a_half_life_without_times_is_refused() -> None:
    with pytest.raises(DataError, match=r"half_life = 2.*timestamp column"):
        fit(Popularity(PopularityConfig(half_life=2.0), num_items=2), [1, 2])


@pytest.mark.parametrize("half_life", [0, -1.0, float("inf"), float("nan")])
def test_a_half_life_is_a_number_of_days(half_life: float) -> None:
    with pytest.raises(ValueError, match="half_life is a number of days above 0"):
        PopularityConfig(half_life=half_life)
