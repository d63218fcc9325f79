"""Two towers: what goes into each, and who is answered by features alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rayrec.errors import DataError
from rayrec.features.histories import Histories
from rayrec.inference.bundle import load_weights, save_weights
from rayrec.models.interactions import Interactions, SparseRows
from rayrec.models.optimization import Optimization
from rayrec.models.two_tower import TwoTower, TwoTowerConfig, common, shown
from rayrec.training.feed import feed_for
from rayrec.training.loop import train
from rayrec.training.run import start
from rayrec.training.world import World

ITEMS, USERS, CONTEXTS = 6, 3, 2
HISTORY = torch.tensor([[0, 0, 3, 5, 1], [5, 4, 5, 2, 3]])
USER = torch.tensor([[1.0, 0.0, 0.5], [0.0, 2.0, 0.0]])
GENRES = np.zeros((ITEMS + 1, 2), np.float32)
GENRES[1:4, 0] = GENRES[4:, 1] = GENRES[2, 1] = 1
LISTS = [[1, 2, 3], [4, 5, 1], [2, 4]]


def sparse(dense: np.ndarray) -> SparseRows:
    rows, columns = np.nonzero(dense)
    return SparseRows.of(rows, columns, dense[rows, columns], *dense.shape)


def seen(lists: list[list[int]], genres: np.ndarray = GENRES, **features: SparseRows) -> Interactions:
    return Interactions(Histories.of(lists), len(genres) - 1, item_features=sparse(genres), **features)


def observed(**config: Any) -> TwoTower:
    """A model that has seen all sorts of features, with weights far from zero."""
    torch.manual_seed(0)
    model = TwoTower(
        TwoTowerConfig(dim=8, hidden=16, recent=2, dropout=0.0, min_items=1, max_length=5, **config), ITEMS
    )
    users, contexts = sparse(np.eye(len(LISTS), USERS)), sparse(np.ones((8, CONTEXTS)))
    model.observe(seen(LISTS, user_features=users, context_features=contexts))
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.5)
    return model.eval()


def written_out(model: TwoTower, events: list[int], user: Tensor, context: Tensor) -> Tensor:
    """The state after some events, by the paper's figure."""
    vectors = [model.item.all_rows()[event] for event in events]
    means = [torch.stack(some).mean(0) for some in (vectors, vectors[-2:])]
    layer = torch.cat([model.means.weight, model.user.weight, model.context.weight], 1)
    hidden = layer @ torch.cat([model.norm(torch.cat(means)), user, context]) + model.means.bias
    state: Tensor = model.state(hidden)
    return state


def test_the_state_is_one_layer_over_means_user_and_context() -> None:
    model, context = observed(), torch.randn(2, 5, CONTEXTS)
    found = model.states(HISTORY[1:], user=USER[1:], context=context[1:])[0]
    for position in range(5):
        events = HISTORY[1, : position + 1].tolist()
        torch.testing.assert_close(found[position], written_out(model, events, USER[1], context[1, position]))
    latest = model.latest(HISTORY, user=USER, context=context[:, -1])
    torch.testing.assert_close(latest[1], found[-1])
    torch.testing.assert_close(latest[0], written_out(model, [3, 5, 1], USER[0], context[0, -1]))


def test_an_item_is_the_sum_of_its_own_vector_and_those_of_its_features() -> None:
    model = observed()
    parts = model.item.parts
    assert parts is not None
    expected = parts.own.detach() + torch.from_numpy(GENRES) @ parts.features.detach()
    expected[[0, 6]] -= parts.own.detach()[[0, 6]]  # padding, and the item that nobody had
    torch.testing.assert_close(model.item.all_rows(), expected)
    rows = torch.tensor([[6, 2], [2, 0]])
    model.item.hide = 0.0
    torch.testing.assert_close(model.item.train().lookup(rows), expected[rows])


def test_who_is_not_known_has_zeros_for_features() -> None:
    model = observed()
    assert model.score(HISTORY).equal(
        model.score(HISTORY, user=torch.zeros(2, USERS), context=torch.zeros(2, CONTEXTS))
    )
    assert not model.score(HISTORY).equal(model.score(HISTORY, user=USER))


def test_features_however_large_leave_a_state_finite() -> None:
    most = float(np.finfo(np.float32).max)
    found = observed().latest(HISTORY, user=torch.tensor([[most, -most, most]] * 2), context=torch.full((2, 2), -most))
    assert found.isfinite().all()


def test_a_bundle_answers_without_the_items_features(tmp_path: Path) -> None:
    model, again = observed(), TwoTower(observed().config, ITEMS)
    save_weights(model, tmp_path, model.transient)
    load_weights(again, tmp_path)
    assert again.eval().score(HISTORY, user=USER).equal(model.score(HISTORY, user=USER))
    assert not [name for name in again.state_dict() if "parts" in name]


def test_a_new_item_is_recommended_to_the_fans_of_its_genre() -> None:
    """Items 1 to 8 and 17 are of the first genre, 9 to 16 and 18 of the second; nobody had the last two."""
    genres = np.zeros((19, 3), np.float32)
    genres[17, 2] = genres[8, 2] = 1  # too few to learn from
    genres[[*range(1, 9), 17], 0] = genres[[*range(9, 17), 18], 1] = 1
    random = np.random.default_rng(0)
    model = trained([(random.permutation(8)[:6] + 1 + 8 * (user % 2)).tolist() for user in range(100)], genres)
    scores = model.score(torch.tensor([[1, 5, 3], [12, 9, 10]]))[:, 1:]
    first, second = scores[:, :8].mean(1), scores[:, 8:16].mean(1)
    assert scores[0, 16] > second[0] + (first - second)[0] / 2 > scores[0, 17]
    assert scores[1, 17] > first[1] + (second - first)[1] / 2 > scores[1, 16]
    assert model.item.parts is not None
    assert not model.item.parts.own[[0, 17, 18]].any(), "nothing was learnt of them alone"


def trained(lists: list[list[int]], genres: np.ndarray, **features: SparseRows) -> TwoTower:
    torch.manual_seed(0)
    settings = Optimization(epochs=10, batch_size=16, learning_rate=1e-2)
    model = TwoTower(TwoTowerConfig(dim=16, hidden=32, dropout=0.0, min_items=8, max_length=8), len(genres) - 1)
    interactions = seen(lists, genres, **features)
    run = start(model, interactions, settings, World())
    train(run, feed_for(model, interactions, settings, 0), lambda model: {}, lambda run: None)
    return model.eval()


def test_who_asks_and_when_decide_where_the_history_does_not() -> None:
    """After item 1, users of the first group take 2 mornings and 3 evenings, those of the second 4 and 5."""
    groups, evenings = np.arange(160) % 2, np.arange(160) // 2 % 2
    lists = [[1, 2 + 2 * group + evening] for group, evening in zip(groups, evenings, strict=True)]
    users = sparse(np.eye(2, dtype=np.float32)[groups])
    contexts = sparse(np.eye(2, dtype=np.float32)[np.repeat(evenings, 2)])
    model = trained(lists, np.zeros((6, 1), np.float32), user_features=users, context_features=contexts)
    user, context = torch.eye(2)[[0, 0, 1, 1]], torch.eye(2)[[0, 1, 0, 1]]
    found = model.score(torch.ones(4, 1, dtype=torch.int64), user=user, context=context)[:, 1:].argmax(1) + 1
    assert found.tolist() == [2, 3, 4, 5]


def test_a_feature_of_few_items_is_not_read() -> None:
    features = sparse(np.array([[0, 0, 0], [1, 1, 0], [1, 0, 2], [1, 1, 0.5], [0, 1, 0]], np.float32))
    known = np.array([False, True, True, True, False])
    assert common(features, known, 3).dense(np.arange(5)).tolist() == [[0], [1], [1], [1], [0]]
    assert common(features, known, 2).dense(np.arange(5)).tolist() == features.dense(np.arange(5)).tolist()
    assert common(features, known, 4).width == 0


def test_features_that_are_all_too_rare_are_as_good_as_none() -> None:
    model = trained([[1, 2], [2, 1]] * 40, np.eye(4, dtype=np.float32))
    assert model.score(torch.tensor([[1], [2]]))[:, 1:].argmax(1).tolist() == [1, 0]


def test_a_share_of_the_rows_is_hidden_whole() -> None:
    torch.manual_seed(0)
    found = shown(torch.full((10_000, 3), 2.0), 0.25)
    assert set(found.sum(1).tolist()) == {0.0, 6.0}
    assert 0.23 < (found == 0).float().mean() < 0.27


def test_too_many_columns_are_refused() -> None:
    wide = SparseRows(np.zeros(4, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32), 16_384)
    with pytest.raises(DataError, match=r"data\.features\.users makes 16384 columns, of which it reads at most 4096"):
        TwoTower(TwoTowerConfig(), ITEMS).observe(seen(LISTS, user_features=wide))


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"dim": 0}, "dim must be"), ({"recent": 0}, "recent must be"), ({"hide": 1.0}, "hide must be")],
)
def test_a_setting_out_of_range_is_refused(settings: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TwoTowerConfig(**settings)  # type: ignore[arg-type]
