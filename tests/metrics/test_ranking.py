"""What the accuracy metrics promise: values computed by hand, and agreement with ranx from the scores on."""

from math import log2

import numpy as np
import numpy.typing as npt
import pytest
import torch

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
    ranking_metrics,
    recall,
    reciprocal_rank,
)
from rayrec.metrics.ranks import rank_targets

IntArray = npt.NDArray[np.int64]

ONE_TARGET_AT_3 = np.array([[3]])
TARGETS_AT_2_4_AND_9 = np.array([[9, 2, 4]])
NO_HIT = np.array([[11, 40]])


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
def lists() -> tuple[IntArray, IntArray]:
    """Scores [U, V] with ties, and 1 to 14 targets, so that some users have more targets than every cut-off."""
    rng = np.random.default_rng(7)
    scores = rng.integers(0, 15, size=(1000, CATALOGUE))
    targets = rng.permuted(np.tile(np.arange(CATALOGUE), (1000, 1)), axis=1)[:, :14]
    targets[np.arange(14) >= rng.integers(1, 15, size=1000)[:, None]] = -1
    return scores, targets


@pytest.fixture(scope="module")
def random_ranks(lists: tuple[IntArray, IntArray]) -> IntArray:
    scores, targets = lists
    return rank_targets(torch.from_numpy(scores).float(), torch.from_numpy(targets)).numpy()


@pytest.fixture(scope="module")
def ranx_values(lists: tuple[IntArray, IntArray]) -> dict[str, list[float]]:
    """Judge the same lists with ranx, one value per user and metric."""
    with pytest.MonkeyPatch.context() as patch:
        # Compiled, ranx takes 40 seconds to start and nothing to run; interpreted, it takes two seconds in all.
        patch.setattr("numba.config.DISABLE_JIT", 1)
        return judge_with_ranx(*lists)


def judge_with_ranx(scores: IntArray, targets: IntArray) -> dict[str, list[float]]:
    """The library breaks ties in its own way, so targets get a little less than what they are tied with."""
    from ranx import Qrels, Run, evaluate

    users = [f"u{user:03d}" for user in range(len(scores))]
    relevant = {
        user: {f"i{item}": 1 for item in row[row >= 0].tolist()} for user, row in zip(users, targets, strict=True)
    }
    lowered = scores.astype(np.float64)
    for row, items in zip(lowered, targets, strict=True):
        row[items[items >= 0]] -= np.linspace(0.1, 0.9, (items >= 0).sum())
    listed = {
        user: {f"i{item}": row[item] for item in range(CATALOGUE)} for user, row in zip(users, lowered, strict=True)
    }
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


@pytest.mark.parametrize("name", ["ndcg@10001", "ndcg@1000000000000", "hr@" + "9" * 30])
def test_a_cutoff_beyond_what_anybody_looks_at_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="the largest cut-off is 10,000"):
        parse_metric(name)
