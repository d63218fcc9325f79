"""Intervals and tests keep the promises their levels make, on values like those of ranking metrics."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from rayrec.metrics import significance
from rayrec.metrics.significance import bootstrap_interval, holm, paired_test

USERS = 200


def ndcg_values(rng: np.random.Generator, shape: tuple[int, ...], hits: float = 0.3) -> np.ndarray:
    """NDCG@10 of one target each: zero for most users, and else one of ten values."""
    return np.where(rng.random(shape) < hits, 1 / np.log2(rng.integers(2, 12, shape)), 0.0)


def retrained(rng: np.random.Generator, values: np.ndarray, hits: float = 0.3) -> np.ndarray:
    """A model trained again: it tells six users in ten the same as before, and the others anew, perhaps better."""
    return np.where(rng.random(values.shape) < 0.6, values, ndcg_values(rng, values.shape, hits))


class TestBootstrapInterval:
    @pytest.mark.parametrize("groups", [10_000, 100], ids=["users", "groups"])
    def test_it_holds_the_true_mean_as_often_as_its_level_says(
        self, groups: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(significance, "GROUPS", groups)
        rng = np.random.default_rng(1)
        truth = 0.3 * np.mean(1 / np.log2(np.arange(2, 12)))
        intervals = [bootstrap_interval(ndcg_values(rng, (USERS,)), seed=run) for run in range(400)]
        assert np.mean([low <= truth <= high for low, high in intervals]) == pytest.approx(0.95, abs=0.025)

    def test_its_width_is_that_of_the_standard_error_also_where_users_are_drawn_in_groups(self) -> None:
        values = ndcg_values(np.random.default_rng(2), (50_003,))
        low, high = bootstrap_interval(values)
        error = values.std() / np.sqrt(len(values))
        assert (high - low) / (2 * 1.96 * error) == pytest.approx(1, abs=0.08)
        assert low < values.mean() < high

    def test_metrics_share_the_draws(self) -> None:
        values = ndcg_values(np.random.default_rng(3), (USERS, 3))
        together = bootstrap_interval(values)
        assert together.shape == (2, 3)
        np.testing.assert_allclose(together[:, 1], bootstrap_interval(values[:, 1]))

    def test_the_seed_decides(self) -> None:
        values = ndcg_values(np.random.default_rng(4), (USERS,))
        assert bootstrap_interval(values, seed=1).tolist() == bootstrap_interval(values, seed=1).tolist()
        assert bootstrap_interval(values, seed=1).tolist() != bootstrap_interval(values, seed=2).tolist()

    def test_a_higher_level_is_wider(self) -> None:
        values = ndcg_values(np.random.default_rng(5), (USERS,))
        (low, high), (lower, higher) = bootstrap_interval(values, level=0.8), bootstrap_interval(values, level=0.99)
        assert lower < low < high < higher

    def test_what_has_no_interval_is_refused(self) -> None:
        with pytest.raises(ValueError, match="at least 2 users"):
            bootstrap_interval(np.array([1.0]))
        with pytest.raises(ValueError, match="finite"):
            bootstrap_interval(np.array([1.0, np.nan]))
        with pytest.raises(ValueError, match="level"):
            bootstrap_interval(np.array([1.0, 2.0]), level=95)


class TestPairedTest:
    def test_it_says_how_much_and_over_whom(self) -> None:
        found = paired_test(np.array([0.5, 1.0, 0.0, 0.2]), np.array([0.5, 0.0, 0.0, 0.4]))
        assert found.difference == pytest.approx((1.0 - 0.2) / 4)
        assert (found.users, found.ties) == (4, 2)
        assert found.low <= found.difference <= found.high

    def test_its_p_value_is_the_share_of_all_assignments_of_signs(self) -> None:
        differences = np.array([0.1, -0.3, 0.2, 0.5, 0.1, 0.2, 0.0])
        sums = [abs(np.dot(signs, differences)) for signs in product([-1, 1], repeat=len(differences))]
        exact = np.mean(np.array(sums) >= abs(differences.sum()) - 1e-9)
        assert paired_test(differences, np.zeros(7), resamples=50_000).p_value == pytest.approx(exact, abs=0.01)

    @pytest.mark.parametrize("groups", [10_000, 50], ids=["users", "groups"])
    def test_equal_models_are_called_different_at_the_5_percent_level_in_5_percent_of_cases(
        self, groups: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(significance, "GROUPS", groups)
        rng = np.random.default_rng(6)
        false = 0
        for run in range(600):
            values = ndcg_values(rng, (USERS,))
            false += paired_test(values, retrained(rng, values), resamples=499, seed=run).p_value <= 0.05
        assert 0.03 <= false / 600 <= 0.07

    def test_a_better_model_is_found(self) -> None:
        rng = np.random.default_rng(7)
        found = 0
        for run in range(100):
            worse = ndcg_values(rng, (USERS,))
            found += paired_test(retrained(rng, worse, hits=0.8), worse, resamples=499, seed=run).p_value <= 0.05
        assert found >= 95

    def test_the_model_against_its_values_dealt_to_other_users_is_no_difference(self) -> None:
        rng = np.random.default_rng(12)
        values = ndcg_values(rng, (USERS,))
        assert paired_test(values, rng.permutation(values)).p_value > 0.99

    def test_of_thousands_of_users_drawn_in_groups_a_small_difference_is_found(self) -> None:
        rng = np.random.default_rng(8)
        worse = ndcg_values(rng, (30_001,))
        found = paired_test(retrained(rng, worse, hits=0.35), worse, resamples=999)
        assert found.p_value == 1 / 1000
        assert found.low > 0

    def test_swapping_the_models_swaps_the_sign_only(self) -> None:
        rng = np.random.default_rng(9)
        a = ndcg_values(rng, (USERS,))
        b = retrained(rng, a)
        forth, back = paired_test(a, b), paired_test(b, a)
        assert (forth.difference, forth.p_value) == (-back.difference, back.p_value)

    def test_models_that_agree_on_every_user_differ_by_nothing(self) -> None:
        values = ndcg_values(np.random.default_rng(10), (USERS,))
        found = paired_test(values, values)
        assert (found.difference, found.low, found.high, found.p_value, found.ties) == (0, 0, 0, 1, USERS)

    def test_the_seed_decides(self) -> None:
        rng = np.random.default_rng(11)
        a, b = ndcg_values(rng, (2, USERS))
        assert paired_test(a, b, seed=3) == paired_test(a, b, seed=3)

    def test_other_users_cannot_be_paired(self) -> None:
        with pytest.raises(ValueError, match="one value per user"):
            paired_test(np.zeros(3), np.zeros(4))


class TestHolm:
    def test_the_smallest_is_multiplied_by_all_and_the_largest_by_one(self) -> None:
        assert holm([0.01, 0.04, 0.02]) == pytest.approx([3 * 0.01, 1 * 0.04, 2 * 0.02])

    def test_none_ends_below_a_smaller_one_nor_above_1(self) -> None:
        assert holm([0.02, 0.021, 0.6, 0.7]) == pytest.approx([0.08, 0.08, 1.0, 1.0])

    def test_one_test_is_left_as_it_is(self) -> None:
        assert holm([0.03]) == pytest.approx([0.03])
        assert len(holm([])) == 0

    def test_what_is_no_p_value_is_refused(self) -> None:
        with pytest.raises(ValueError, match="from 0 to 1"):
            holm([0.5, np.nan])
