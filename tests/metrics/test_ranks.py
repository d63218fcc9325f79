"""Where a target ranks: worst-case ties, exclusions, padding, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, tensor

from rayrec.metrics.ranking import UNREACHABLE_RANK, recall
from rayrec.metrics.ranks import rank_targets


def scores_of(*rows: list[float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float32)


def excluding(*columns: int) -> tuple[Tensor, Tensor]:
    """Columns that are no candidates for the only user."""
    return torch.zeros(len(columns), dtype=torch.int64), torch.tensor(columns)


class TestRankTargets:
    def test_the_best_item_has_rank_1_and_the_worst_rank_v(self) -> None:
        scores = scores_of([0.2, 0.9, 0.5, -1.0])
        assert rank_targets(scores, tensor([[1, 2, 0, 3]])).tolist() == [[1, 2, 3, 4]]

    def test_users_are_ranked_independently(self) -> None:
        scores = scores_of([0.1, 0.2, 0.3], [0.3, 0.2, 0.1])
        assert rank_targets(scores, tensor([[0], [0]])).tolist() == [[3], [1]]

    def test_ranks_are_int64(self) -> None:
        assert rank_targets(scores_of([0.1, 0.2]), tensor([[0]])).dtype == torch.int64

    def test_a_tie_counts_against_the_model(self) -> None:
        scores = scores_of([0.5, 0.9, 0.5, 0.5, 0.1])  # 0.9 is ahead and two others tie: 1 + 1 + 2
        assert rank_targets(scores, tensor([[2]])).tolist() == [[4]]

    def test_a_model_that_scores_everything_alike_ranks_the_target_last(self) -> None:
        assert rank_targets(torch.zeros(1, 100), tensor([[0]])).tolist() == [[100]]

    def test_tied_targets_stand_behind_tied_non_targets_in_their_given_order(self) -> None:
        scores = scores_of([0.5, 0.5, 0.9, 0.5, 0.5])  # 0.9 first, then items 1 and 3, then targets 4 and 0
        assert rank_targets(scores, tensor([[4, 0]])).tolist() == [[4, 5]]

    def test_a_better_target_of_the_same_user_is_a_candidate_too(self) -> None:
        assert rank_targets(scores_of([0.9, 0.8, 0.1]), tensor([[1, 0]])).tolist() == [[2, 1]]

    def test_padding_has_rank_0_wherever_it_stands(self) -> None:
        scores = scores_of([0.9, 0.8, 0.1], [0.9, 0.8, 0.1])
        assert rank_targets(scores, tensor([[-1, 1], [-1, -1]])).tolist() == [[0, 2], [0, 0]]

    def test_padding_does_not_tie_with_the_last_item(self) -> None:
        assert rank_targets(scores_of([0.9, 0.5, 0.5]), tensor([[1, -1]])).tolist() == [[3, 0]]

    def test_excluded_items_are_no_candidates(self) -> None:
        scores = scores_of([0.9, 0.8, 0.5, 0.5, 0.1])
        assert rank_targets(scores, tensor([[2]]), excluding(0, 3)).tolist() == [[2]]

    def test_an_excluded_target_is_relevant_but_never_within_any_cut_off(self) -> None:
        ranks = rank_targets(scores_of([0.9, 0.8, 0.1]), tensor([[0, 1]]), excluding(0))
        assert ranks.tolist() == [[UNREACHABLE_RANK, 1]]
        assert recall(ranks.numpy(), k=1_000_000).tolist() == [0.5]

    def test_an_excluded_target_does_not_push_a_tied_target_back(self) -> None:
        ranks = rank_targets(scores_of([0.5, 0.5, 0.5]), tensor([[0, 1]]), excluding(1))
        assert ranks[0, 0] == 2

    def test_minus_infinity_is_a_score_like_any_other(self) -> None:
        scores = scores_of([-torch.inf, -torch.inf, 0.3])
        assert rank_targets(scores, tensor([[0]])).tolist() == [[3]]

    def test_the_inputs_are_left_as_they_were(self) -> None:
        scores, targets, excluded = scores_of([0.9, 0.8, 0.1]), tensor([[0, -1]]), excluding(1)
        rank_targets(scores, targets, excluded)
        assert scores.tolist() == scores_of([0.9, 0.8, 0.1]).tolist()
        assert targets.tolist() == [[0, -1]]
        assert [index.tolist() for index in excluded] == [[0], [1]]

    def test_no_users_give_no_ranks(self) -> None:
        empty = rank_targets(torch.zeros(0, 5), torch.zeros(0, 2, dtype=torch.int64))
        assert empty.shape == (0, 2)
        assert rank_targets(torch.zeros(3, 5), torch.zeros(3, 0, dtype=torch.int64)).shape == (3, 0)

    def test_an_item_excluded_twice_is_excluded_once(self) -> None:
        assert rank_targets(scores_of([0.9, 0.8, 0.5]), tensor([[2]]), excluding(0, 0, 1, 0)).tolist() == [[1]]

    def test_what_one_user_excludes_stays_a_candidate_for_another(self) -> None:
        scores = scores_of([0.9, 0.5], [0.9, 0.5])
        assert rank_targets(scores, tensor([[1], [1]]), (tensor([1]), tensor([0]))).tolist() == [[2], [1]]

    def test_more_than_fits_a_block_is_ranked_in_parts(self, monkeypatch: pytest.MonkeyPatch) -> None:
        scores, targets, excluded = random_case(np.random.default_rng(2), users=50, columns=20, width=6)
        at_once = rank_targets(scores, targets, excluded)
        monkeypatch.setattr("rayrec.metrics.ranks.BLOCK", 70)
        assert rank_targets(scores, targets, excluded).tolist() == at_once.tolist()

    @pytest.mark.parametrize("levels", [1, 3, 50])
    def test_a_sorted_list_that_puts_tied_targets_last_gives_the_same_ranks(self, levels: int) -> None:
        scores, targets, excluded = random_case(np.random.default_rng(levels), users=300, columns=20, width=7)
        scores = (scores * levels).floor()
        mask = torch.zeros_like(scores, dtype=torch.bool)
        mask[excluded] = True
        expected = [
            ranks_by_sorting(*user) for user in zip(scores.tolist(), targets.tolist(), mask.tolist(), strict=True)
        ]
        assert rank_targets(scores, targets, excluded).tolist() == expected

    def test_nan_scores_are_refused(self) -> None:
        with pytest.raises(ValueError, match="1 of 2 users have NaN"):
            rank_targets(scores_of([0.1, 0.2], [0.1, torch.nan]), tensor([[0], [0]]))

    @pytest.mark.parametrize("target", [-2, 3])
    def test_a_target_outside_the_catalogue_is_refused(self, target: int) -> None:
        with pytest.raises(ValueError, match=r"columns 0\.\.2"):
            rank_targets(scores_of([0.1, 0.2, 0.3]), tensor([[target]]))

    def test_a_repeated_target_is_refused(self) -> None:
        with pytest.raises(ValueError, match="same target twice"):
            rank_targets(scores_of([0.1, 0.2, 0.3]), tensor([[1, -1, -1, 1]]))

    def test_shapes_that_do_not_fit_are_refused(self) -> None:
        scores = scores_of([0.1, 0.2, 0.3])
        with pytest.raises(ValueError, match="do not fit"):
            rank_targets(scores, tensor([[0], [1]]))
        with pytest.raises(ValueError, match="excluded must be pairs"):
            rank_targets(scores, tensor([[0]]), (tensor([0]), tensor([0, 1])))


def random_case(
    rng: np.random.Generator, users: int, columns: int, width: int
) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
    """Scores, padded targets and, of each row, about a third excluded."""
    targets = rng.permuted(np.tile(np.arange(columns), (users, 1)), axis=1)[:, :width]
    targets[rng.random(targets.shape) < 0.3] = -1
    rows, excluded = np.nonzero(rng.random((users, columns)) < 0.3)
    scores = rng.random((users, columns), dtype=np.float32)
    return torch.from_numpy(scores), torch.from_numpy(targets), (torch.from_numpy(rows), torch.from_numpy(excluded))


def ranks_by_sorting(scores: list[float], targets: list[int], excluded: list[bool]) -> list[int]:
    """Write the worst-case list out in full and look each target up in it."""
    place = {target: position for position, target in enumerate(targets)}
    candidates = [item for item in range(len(scores)) if not excluded[item]]
    listed = sorted(candidates, key=lambda item: (-scores[item], place.get(item, -1)))
    rank = {item: position + 1 for position, item in enumerate(listed)} | {-1: 0}
    return [rank.get(item, UNREACHABLE_RANK) for item in targets]
