"""What the accuracy metrics promise: hand-computed values, worst-case ties, and agreement with ranx."""

from math import log2

import numpy as np
import numpy.typing as npt
import pytest

from rayrec.metrics.ranking import (
    METRICS,
    UNREACHABLE_RANK,
    average_precision,
    dcg,
    f1,
    hit_rate,
    ndcg,
    parse_metric,
    precision,
    rank_targets,
    ranking_metrics,
    recall,
    reciprocal_rank,
)

IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
ScoreArray = npt.NDArray[np.float32]

ONE_TARGET_AT_3 = np.array([[3]])
TARGETS_AT_2_4_AND_9 = np.array([[9, 2, 4]])
NO_HIT = np.array([[11, 40]])


def scores_of(*rows: list[float]) -> ScoreArray:
    return np.array(rows, dtype=np.float32)


def excluding(num_columns: int, *excluded: int) -> BoolArray:
    mask = np.zeros((1, num_columns), dtype=np.bool_)
    mask[0, list(excluded)] = True
    return mask


class TestRankTargets:
    def test_the_best_item_has_rank_1_and_the_worst_rank_v(self) -> None:
        scores = scores_of([0.2, 0.9, 0.5, -1.0])
        assert rank_targets(scores, np.array([[1, 2, 0, 3]])).tolist() == [[1, 2, 3, 4]]

    def test_users_are_ranked_independently(self) -> None:
        scores = scores_of([0.1, 0.2, 0.3], [0.3, 0.2, 0.1])
        assert rank_targets(scores, np.array([[0], [0]])).tolist() == [[3], [1]]

    def test_ranks_are_int64(self) -> None:
        assert rank_targets(scores_of([0.1, 0.2]), np.array([[0]])).dtype == np.int64

    def test_a_tie_counts_against_the_model(self) -> None:
        scores = scores_of([0.5, 0.9, 0.5, 0.5, 0.1])  # 0.9 is ahead and two others tie: 1 + 1 + 2
        assert rank_targets(scores, np.array([[2]])).tolist() == [[4]]

    def test_a_model_that_scores_everything_alike_ranks_the_target_last(self) -> None:
        assert rank_targets(np.zeros((1, 100), dtype=np.float32), np.array([[0]])).tolist() == [[100]]

    def test_tied_targets_stand_behind_tied_non_targets_in_their_given_order(self) -> None:
        scores = scores_of([0.5, 0.5, 0.9, 0.5, 0.5])  # 0.9 first, then items 1 and 3, then targets 4 and 0
        assert rank_targets(scores, np.array([[4, 0]])).tolist() == [[4, 5]]

    def test_a_better_target_of_the_same_user_is_a_candidate_too(self) -> None:
        assert rank_targets(scores_of([0.9, 0.8, 0.1]), np.array([[1, 0]])).tolist() == [[2, 1]]

    def test_padding_has_rank_0_wherever_it_stands(self) -> None:
        scores = scores_of([0.9, 0.8, 0.1], [0.9, 0.8, 0.1])
        assert rank_targets(scores, np.array([[-1, 1], [-1, -1]])).tolist() == [[0, 2], [0, 0]]

    def test_padding_does_not_tie_with_the_last_item(self) -> None:
        assert rank_targets(scores_of([0.9, 0.5, 0.5]), np.array([[1, -1]])).tolist() == [[3, 0]]

    def test_excluded_items_are_no_candidates(self) -> None:
        scores = scores_of([0.9, 0.8, 0.5, 0.5, 0.1])
        assert rank_targets(scores, np.array([[2]]), excluding(5, 0, 3)).tolist() == [[2]]

    def test_an_excluded_target_is_relevant_but_never_within_any_cut_off(self) -> None:
        ranks = rank_targets(scores_of([0.9, 0.8, 0.1]), np.array([[0, 1]]), excluding(3, 0))
        assert ranks.tolist() == [[UNREACHABLE_RANK, 1]]
        assert recall(ranks, k=1_000_000).tolist() == [0.5]

    def test_an_excluded_target_does_not_push_a_tied_target_back(self) -> None:
        ranks = rank_targets(scores_of([0.5, 0.5, 0.5]), np.array([[0, 1]]), excluding(3, 1))
        assert ranks[0, 0] == 2

    def test_minus_infinity_is_a_score_like_any_other(self) -> None:
        scores = scores_of([-np.inf, -np.inf, 0.3])
        assert rank_targets(scores, np.array([[0]])).tolist() == [[3]]

    def test_the_inputs_are_left_as_they_were(self) -> None:
        scores, targets, excluded = scores_of([0.9, 0.8, 0.1]), np.array([[0, -1]]), excluding(3, 1)
        rank_targets(scores, targets, excluded)
        assert scores.tolist() == scores_of([0.9, 0.8, 0.1]).tolist()
        assert targets.tolist() == [[0, -1]]
        assert excluded.tolist() == [[False, True, False]]

    def test_no_users_give_no_ranks(self) -> None:
        empty = rank_targets(np.zeros((0, 5), dtype=np.float32), np.zeros((0, 2), dtype=np.int64))
        assert empty.shape == (0, 2)

    def test_a_sorted_list_that_puts_tied_targets_last_gives_the_same_ranks(self) -> None:
        rng = np.random.default_rng(1)
        for _ in range(300):
            scores = rng.integers(0, 5, size=(1, 20)).astype(np.float32)
            targets = rng.permutation(20)[None, : rng.integers(1, 8)]
            excluded = rng.random((1, 20)) < 0.3
            expected = ranks_by_sorting(scores[0], targets[0].tolist(), excluded[0])
            assert rank_targets(scores, targets, excluded).tolist() == [expected]

    def test_nan_scores_are_refused(self) -> None:
        with pytest.raises(ValueError, match="1 of 2 users have NaN"):
            rank_targets(scores_of([0.1, 0.2], [0.1, np.nan]), np.array([[0], [0]]))

    @pytest.mark.parametrize("target", [-2, 3])
    def test_a_target_outside_the_catalogue_is_refused(self, target: int) -> None:
        with pytest.raises(ValueError, match=r"columns 0\.\.2"):
            rank_targets(scores_of([0.1, 0.2, 0.3]), np.array([[target]]))

    def test_a_repeated_target_is_refused(self) -> None:
        with pytest.raises(ValueError, match="same target twice"):
            rank_targets(scores_of([0.1, 0.2, 0.3]), np.array([[1, -1, -1, 1]]))

    def test_shapes_that_do_not_fit_are_refused(self) -> None:
        scores = scores_of([0.1, 0.2, 0.3])
        with pytest.raises(ValueError, match="do not fit"):
            rank_targets(scores, np.array([[0], [1]]))
        with pytest.raises(ValueError, match="excluded must be bool"):
            rank_targets(scores, np.array([[0]]), excluding(2, 0))


def ranks_by_sorting(scores: ScoreArray, targets: list[int], excluded: BoolArray) -> list[int]:
    """Write the worst-case list out in full and look each target up in it."""
    place = {target: position for position, target in enumerate(targets)}
    candidates = [item for item in range(len(scores)) if not excluded[item]]
    listed = sorted(candidates, key=lambda item: (-scores[item], place.get(item, -1)))
    return [UNREACHABLE_RANK if excluded[target] else listed.index(target) + 1 for target in targets]


class TestMetricsByHand:
    def test_hit_rate_asks_for_one_hit_only(self) -> None:
        assert hit_rate(TARGETS_AT_2_4_AND_9, k=1).tolist() == [0.0]
        assert hit_rate(TARGETS_AT_2_4_AND_9, k=2).tolist() == [1.0]
        assert hit_rate(TARGETS_AT_2_4_AND_9, k=10).tolist() == [1.0]

    def test_recall_divides_by_all_targets(self) -> None:
        assert recall(TARGETS_AT_2_4_AND_9, k=5).tolist() == [2 / 3]
        assert recall(TARGETS_AT_2_4_AND_9, k=2).tolist() == [1 / 3]

    def test_precision_divides_by_k_even_beyond_the_number_of_targets(self) -> None:
        assert precision(TARGETS_AT_2_4_AND_9, k=5).tolist() == [2 / 5]
        assert precision(TARGETS_AT_2_4_AND_9, k=100).tolist() == [3 / 100]

    def test_f1_is_the_harmonic_mean_of_precision_and_recall(self) -> None:
        p, r = 2 / 5, 2 / 3
        assert f1(TARGETS_AT_2_4_AND_9, k=5) == pytest.approx([2 * p * r / (p + r)])

    def test_average_precision_averages_the_precision_at_every_hit(self) -> None:
        assert average_precision(TARGETS_AT_2_4_AND_9, k=10) == pytest.approx([(1 / 2 + 2 / 4 + 3 / 9) / 3])

    def test_average_precision_counts_a_target_beyond_k_as_a_miss(self) -> None:
        assert average_precision(TARGETS_AT_2_4_AND_9, k=5) == pytest.approx([(1 / 2 + 2 / 4) / 3])

    def test_average_precision_divides_by_k_where_there_are_more_targets_than_k(self) -> None:
        assert average_precision(TARGETS_AT_2_4_AND_9, k=2) == pytest.approx([(1 / 2) / 2])

    def test_reciprocal_rank_looks_at_the_best_target_only(self) -> None:
        assert reciprocal_rank(TARGETS_AT_2_4_AND_9, k=10).tolist() == [1 / 2]
        assert reciprocal_rank(TARGETS_AT_2_4_AND_9, k=1).tolist() == [0.0]

    def test_dcg_discounts_by_the_logarithm_of_the_rank(self) -> None:
        assert dcg(TARGETS_AT_2_4_AND_9, k=5) == pytest.approx([1 / log2(3) + 1 / log2(5)])

    def test_ndcg_divides_by_the_dcg_of_targets_in_the_first_places(self) -> None:
        gained = 1 / log2(3) + 1 / log2(5)
        ideal = 1 / log2(2) + 1 / log2(3) + 1 / log2(4)
        assert ndcg(TARGETS_AT_2_4_AND_9, k=5) == pytest.approx([gained / ideal])

    def test_the_ideal_list_of_ndcg_is_cut_at_k(self) -> None:
        ideal = 1 / log2(2) + 1 / log2(3)
        assert ndcg(TARGETS_AT_2_4_AND_9, k=2) == pytest.approx([(1 / log2(3)) / ideal])

    def test_with_one_target_the_metrics_collapse(self) -> None:
        at_10 = {name: metric(ONE_TARGET_AT_3, 10).item() for name, metric in METRICS.items()}
        assert at_10["hr"] == at_10["recall"] == 1.0
        assert at_10["map"] == at_10["mrr"] == pytest.approx(1 / 3)
        assert at_10["dcg"] == at_10["ndcg"] == 1 / log2(4)
        assert at_10["precision"] == 1 / 10
        assert at_10["f1"] == pytest.approx(2 / 11)


@pytest.mark.parametrize("name", METRICS)
class TestEveryMetric:
    def test_it_is_0_without_a_hit(self, name: str) -> None:
        assert METRICS[name](NO_HIT, 10).tolist() == [0.0]

    def test_it_is_0_for_a_user_without_targets(self, name: str) -> None:
        assert METRICS[name](np.zeros((2, 3), dtype=np.int64), 10).tolist() == [0.0, 0.0]
        assert METRICS[name](np.zeros((2, 0), dtype=np.int64), 10).tolist() == [0.0, 0.0]

    def test_padding_changes_nothing(self, name: str) -> None:
        padded = np.array([[9, 0, 2, 4, 0]])
        assert METRICS[name](padded, 5).tolist() == METRICS[name](TARGETS_AT_2_4_AND_9, 5).tolist()

    def test_the_order_of_the_targets_does_not_matter(self, name: str) -> None:
        reordered = TARGETS_AT_2_4_AND_9[:, ::-1]
        assert METRICS[name](reordered, 5) == pytest.approx(METRICS[name](TARGETS_AT_2_4_AND_9, 5))

    def test_it_gives_one_float64_per_user(self, name: str) -> None:
        values = METRICS[name](np.array([[1, 2], [3, 0], [0, 0]]), 5)
        assert values.shape == (3,)
        assert values.dtype == np.float64

    def test_a_rank_equal_to_k_is_a_hit(self, name: str) -> None:
        assert METRICS[name](np.array([[10]]), 10).item() > 0

    def test_a_cut_off_below_1_is_refused(self, name: str) -> None:
        with pytest.raises(ValueError, match="at least 1"):
            METRICS[name](ONE_TARGET_AT_3, 0)


@pytest.mark.parametrize("name", ["hr", "map", "mrr", "ndcg"])
@pytest.mark.parametrize("k", [1, 2, 3, 10])
def test_a_perfect_list_scores_1_at_every_cut_off(name: str, k: int) -> None:
    assert METRICS[name](np.array([[1, 2, 3]]), k) == pytest.approx([1.0])


class TestRankingMetrics:
    def test_it_averages_every_metric_at_every_cut_off_over_users(self) -> None:
        means = ranking_metrics(np.array([[1], [4]]), ks=[3, 5])
        assert set(means) == {f"{name}@{k}" for name in METRICS for k in (3, 5)}
        assert means["hr@3"] == (1 + 0) / 2
        assert means["mrr@5"] == (1 + 1 / 4) / 2
        assert means["ndcg@5"] == pytest.approx((1 + 1 / log2(5)) / 2)

    def test_users_without_targets_are_left_out_of_the_means(self) -> None:
        assert ranking_metrics(np.array([[1], [4], [0]]), ks=[3]) == ranking_metrics(np.array([[1], [4]]), ks=[3])

    def test_a_user_whose_targets_are_all_excluded_stays_in_the_means(self) -> None:
        assert ranking_metrics(np.array([[1], [UNREACHABLE_RANK]]), ks=[3])["hr@3"] == 0.5

    def test_no_targets_at_all_are_refused(self) -> None:
        with pytest.raises(ValueError, match="none of the 2 users"):
            ranking_metrics(np.zeros((2, 1), dtype=np.int64), ks=[3])


class TestParseMetric:
    @pytest.mark.parametrize("name", METRICS)
    def test_it_reads_the_keys_that_ranking_metrics_writes(self, name: str) -> None:
        assert parse_metric(f"{name}@10") == (name, 10)

    @pytest.mark.parametrize(
        ("typo", "nearest"),
        [
            ("ndgc@10", "ndcg@10"),
            ("NDCG@20", "ndcg@20"),
            ("recal@5", "recall@5"),
            ("hit_rate@5", "hr@5"),
            ("average_precision@3", "map@3"),
            ("mrr", "mrr@10"),
            ("ndcg@0", "ndcg@10"),
            ("hr10", "hr@10"),
            (" hr@10", "hr@10"),
        ],
    )
    def test_a_wrong_name_is_refused_with_the_nearest_right_one(self, typo: str, nearest: str) -> None:
        with pytest.raises(ValueError, match=f"did you mean '{nearest}'"):
            parse_metric(typo)


CUT_OFFS = (1, 5, 10)
RANX_NAMES = {"hr": "hit_rate"}
CATALOGUE = 40


@pytest.fixture(scope="module")
def random_ranks() -> IntArray:
    """Give 500 users 1 to 14 targets each, so that some have more targets than every cut-off, and random scores."""
    rng = np.random.default_rng(7)
    scores = rng.permuted(np.tile(np.arange(CATALOGUE, dtype=np.float32), (500, 1)), axis=1)
    targets = rng.permuted(np.tile(np.arange(CATALOGUE), (500, 1)), axis=1)[:, :14]
    targets[np.arange(14) >= rng.integers(1, 15, size=500)[:, None]] = -1
    return rank_targets(scores, targets)


@pytest.fixture(scope="module")
def ranx_values(random_ranks: IntArray) -> dict[str, list[float]]:
    """Judge the same lists with ranx, one value per user and metric; item "i7" is whatever stands at rank 7."""
    with pytest.MonkeyPatch.context() as patch:
        # Compiled, ranx takes 40 seconds to start and nothing to run; interpreted, it takes one second in all.
        patch.setattr("numba.config.DISABLE_JIT", 1)
        return judge_with_ranx(random_ranks)


def judge_with_ranx(ranks: IntArray) -> dict[str, list[float]]:
    from ranx import Qrels, Run, evaluate

    users = [f"u{user:03d}" for user in range(len(ranks))]
    relevant = {user: {f"i{rank}": 1 for rank in row[row > 0].tolist()} for user, row in zip(users, ranks, strict=True)}
    listed = {user: {f"i{rank}": 1 / rank for rank in range(1, CATALOGUE + 1)} for user in users}
    run = Run(listed)
    evaluate(Qrels(relevant), run, [f"{RANX_NAMES.get(name, name)}@{k}" for name in METRICS for k in CUT_OFFS])
    return {metric: [per_user[user] for user in users] for metric, per_user in run.scores.items()}


@pytest.mark.parametrize("k", CUT_OFFS)
@pytest.mark.parametrize("name", sorted(METRICS.keys() - {"map"}))
def test_ranx_agrees_for_every_user(
    name: str, k: int, random_ranks: IntArray, ranx_values: dict[str, list[float]]
) -> None:
    expected = ranx_values[f"{RANX_NAMES.get(name, name)}@{k}"]
    np.testing.assert_allclose(METRICS[name](random_ranks, k), expected, rtol=1e-12)


@pytest.mark.parametrize("k", CUT_OFFS)
def test_ranx_agrees_on_map_after_its_normaliser_r_is_turned_into_min_k_r(
    k: int, random_ranks: IntArray, ranx_values: dict[str, list[float]]
) -> None:
    num_targets = (random_ranks > 0).sum(axis=1)
    expected = np.array(ranx_values[f"map@{k}"]) * num_targets / np.minimum(k, num_targets)
    np.testing.assert_allclose(average_precision(random_ranks, k), expected, rtol=1e-12)
