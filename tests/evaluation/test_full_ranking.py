"""Full ranking: every held-out event among all items, what the user had taken out."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rayrec.data.splits import TEST, TRAIN, VALIDATION, by_time, leave_last
from rayrec.data.views import Sequences
from rayrec.evaluation import full_ranking
from rayrec.evaluation.full_ranking import HeldOut, RankedUsers, rank_users
from rayrec.evaluation.held_out import held_out
from rayrec.features.histories import Histories
from rayrec.inference.inputs import Inputs

ITEMS = 15


def made_up(asked: Inputs) -> np.ndarray:
    """Scores with many ties, from the last item and the number of events."""
    rows, history = np.arange(ITEMS + 1), asked["history"]
    return ((rows * 7 + history[:, -1:] * 3 + (history != 0).sum(1, keepdims=True)) % 5).astype(np.float32)


def random_users(seed: int, users: int = 40) -> HeldOut:
    random = np.random.default_rng(seed)
    past = [random.integers(1, ITEMS + 1, random.integers(0, 8)).tolist() for _ in range(users)]
    future = [random.integers(1, ITEMS + 1, random.integers(1, 4)).tolist() for _ in range(users)]
    return HeldOut.of(Histories.of(past), Histories.of(future))


def written_out(users: HeldOut, max_length: int, exclude_seen: bool) -> list[tuple[list[int], int]]:
    """Ranks of each ranked user, and the number of events before: the definition, an item at a time."""
    found = []
    for user in range(len(users.past)):
        past, future = users.past[user].tolist(), users.future[user].tolist()
        scores = made_up({"history": np.array([past[-max_length:] or [0]])})[0]
        candidates = [item for item in range(1, ITEMS + 1) if not (exclude_seen and item in past)]
        targets = sorted(set(future) & set(candidates))
        if not targets:
            continue
        order = sorted(candidates, key=lambda item: (-scores[item], item in targets, item))
        found.append((sorted(order.index(target) + 1 for target in targets), len(past)))
    return found


@pytest.mark.parametrize("exclude_seen", [True, False])
@pytest.mark.parametrize("batch_size", [1, 7, 256])
def test_ranks_are_those_of_the_definition(
    monkeypatch: pytest.MonkeyPatch, exclude_seen: bool, batch_size: int
) -> None:
    monkeypatch.setattr(full_ranking, "LARGEST_BATCH", batch_size)
    for seed in range(3):
        users = random_users(seed)
        ranked = rank_users(made_up, users, ITEMS, 4, 6, exclude_seen)
        ranks = [sorted(rank for rank in row.tolist() if rank) for row in ranked.ranks]
        found = list(zip(ranks, ranked.past_lengths.tolist(), strict=True))
        assert found == written_out(users, 4, exclude_seen)


def test_what_the_user_had_is_neither_recommended_nor_asked_for() -> None:
    users = HeldOut.of(Histories.of([[1, 2], [3], []]), Histories.of([[2], [3, 4, 4], [5]]))
    ranked = rank_users(made_up, users, ITEMS, 4, ITEMS)
    assert ranked.past_lengths.tolist() == [1, 0], "the first user has no target left"
    assert 3 not in ranked.recommended[0]
    assert (ranked.ranks > 0).sum(1).tolist() == [1, 1], "an item held out twice counts once"
    assert rank_users(made_up, users, ITEMS, 4, ITEMS, exclude_seen=False).past_lengths.tolist() == [2, 1, 0]


def test_the_first_recommendation_has_rank_one() -> None:
    users = random_users(5)
    distinct = np.random.default_rng(0).permutation(ITEMS + 1).astype(np.float32)
    ranked = rank_users(lambda asked: np.tile(distinct, (len(asked["history"]), 1)), users, ITEMS, 4, ITEMS)
    for ranks, recommended in zip(ranked.ranks, ranked.recommended, strict=True):
        assert all(recommended[rank - 1] for rank in ranks if rank)


def test_without_users_nothing_is_ranked() -> None:
    ranked = rank_users(made_up, HeldOut.of(Histories.of([]), Histories.of([])), ITEMS, 4, 5)
    assert ranked.ranks.shape == (0, 1)
    assert ranked.recommended.shape == (0, 5)


def test_scores_on_a_device_and_scores_in_an_array_rank_alike() -> None:
    users = random_users(3)
    arrays = rank_users(made_up, users, ITEMS, 4, 6)
    tensors = rank_users(lambda asked: torch.from_numpy(made_up(asked)), users, ITEMS, 4, 6)
    assert (arrays.ranks == tensors.ranks).all()
    assert (arrays.recommended == tensors.recommended).all()


def test_users_are_scored_a_few_at_a_time_when_there_are_many_items(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(full_ranking, "SCORES_AT_A_TIME", 3 * (ITEMS + 1))
    asked: list[int] = []

    def counted(inputs: Inputs) -> np.ndarray:
        asked.append(len(inputs["history"]))
        return made_up(inputs)

    users = random_users(2)
    ranked = rank_users(counted, users, ITEMS, 4, 6)
    assert max(asked) == 3
    assert sum(asked) == len(ranked.ranks)


def test_the_users_of_several_parts_are_joined() -> None:
    users = random_users(4)
    whole = rank_users(made_up, users, ITEMS, 4, 6)
    joined = RankedUsers.joined([rank_users(made_up, users.part(rank, 3), ITEMS, 4, 6) for rank in range(3)])
    assert sorted(joined.users) == whole.users.tolist()
    order = np.argsort(joined.users)
    assert (joined.ranks[order] == whole.ranks).all()
    assert (joined.targets[order] == whole.targets).all()


@pytest.mark.parametrize("size", [1, 2, 3])
def test_workers_share_the_users_out(size: int) -> None:
    users = random_users(1, users=10)
    parts = [users.part(rank, size) for rank in range(size)]
    assert [part.users.tolist() for part in parts] == [list(range(rank, 10, size)) for rank in range(size)]
    asked = users.asked(np.arange(10), 8)["history"]
    for rank, part in enumerate(parts):
        assert (part.asked(np.arange(len(part)), 8)["history"] == asked[rank::size]).all()


# ---- what is held out


def sequences(lists: list[list[int]], folds: np.ndarray) -> Sequences:
    keys = [f"item {row}" for row in range(1, ITEMS + 1)]
    return Sequences(np.arange(1, len(lists) + 1), Histories.of(lists), folds, np.arange(1, ITEMS + 1), keys)


def shown(users: HeldOut) -> list[tuple[list[int], list[int]]]:
    return [(users.past[u].tolist(), users.future[u].tolist()) for u in users.users]


def test_leave_one_out_asks_for_the_last_event_given_all_before() -> None:
    lists = [[1, 2, 3, 4], [5, 6], [7, 8, 9]]
    view = sequences(lists, leave_last(np.array([4, 2, 3]), 1))
    assert shown(held_out(view, "test")) == [([1, 2, 3], [4]), ([7, 8], [9])]
    assert shown(held_out(view, "validation")) == [([1, 2], [3]), ([7], [8])]


def test_a_split_by_time_asks_for_all_that_came_later() -> None:
    lists, times = [[1, 2, 3, 4], [5, 6], [7, 8]], [10, 20, 30, 35, 20, 21, 30, 31]
    view = sequences(lists, by_time(np.array(times), (20, 30)))
    assert view.folds.tolist() == [TRAIN, VALIDATION, TEST, TEST, VALIDATION, VALIDATION, TEST, TEST]
    assert shown(held_out(view, "validation")) == [([1], [2]), ([], [5, 6])]
    assert shown(held_out(view, "test")) == [([1, 2], [3, 4]), ([], [7, 8])]
