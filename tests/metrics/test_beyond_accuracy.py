"""What the metrics of recommended items promise, computed by hand."""

from itertools import combinations
from math import log2

import numpy as np
import pytest

from rayrec.metrics.beyond_accuracy import coverage, gini, intra_list_diversity, novelty, popularity_bias

POPULARITY = np.array([0, 6, 2, 1, 1])  # item rows 1..4 behind the padding row; mean (6 + 2 + 1 + 1) / 4 = 2.5


class TestCoverage:
    def test_it_is_the_share_of_items_recommended_to_somebody(self) -> None:
        recommended = np.array([[1, 2], [2, 5]])  # items 1, 2 and 5 of 10
        assert coverage(recommended, num_items=10) == 3 / 10

    def test_the_same_list_for_everybody_covers_only_that_list(self) -> None:
        assert coverage(np.tile([1, 2], (100, 1)), num_items=4) == 2 / 4

    def test_it_is_1_when_every_item_reaches_somebody(self) -> None:
        assert coverage(np.array([[1, 2], [3, 4]]), num_items=4) == 1.0

    def test_padding_is_no_item(self) -> None:
        assert coverage(np.array([[4, 0, 0]]), num_items=4) == 1 / 4
        assert coverage(np.zeros((2, 3), dtype=np.int64), num_items=4) == 0.0

    @pytest.mark.parametrize("row", [-1, 5])
    def test_a_row_outside_the_catalogue_is_refused(self, row: int) -> None:
        with pytest.raises(ValueError, match=r"outside 0\.\.4"):
            coverage(np.array([[1, row]]), num_items=4)

    def test_an_empty_catalogue_is_refused(self) -> None:
        with pytest.raises(ValueError, match="at least one item"):
            coverage(np.array([[0]]), num_items=0)


class TestPopularityBias:
    def test_it_compares_recommended_with_catalogue_popularity(self) -> None:
        lists_of_two = np.array([[1, 2], [3, 4]])
        arp = ((6 + 2) / 2 + (1 + 1) / 2) / 2
        assert popularity_bias(lists_of_two, POPULARITY) == pytest.approx(arp / 2.5)

    def test_recommending_the_whole_catalogue_is_no_bias(self) -> None:
        assert popularity_bias(np.array([[1, 2, 3, 4]]), POPULARITY) == 1.0

    def test_always_the_most_popular_item_is_above_1_and_niche_items_below(self) -> None:
        assert popularity_bias(np.array([[1], [1]]), POPULARITY) == pytest.approx(6 / 2.5)
        assert popularity_bias(np.array([[3], [4]]), POPULARITY) == pytest.approx(1 / 2.5)

    def test_the_size_of_the_log_does_not_matter(self) -> None:
        recommended = np.array([[1, 3]])
        assert popularity_bias(recommended, POPULARITY * 1000) == pytest.approx(
            popularity_bias(recommended, POPULARITY)
        )

    def test_a_short_list_weighs_as_much_as_a_long_one(self) -> None:
        recommended = np.array([[1, 0, 0], [2, 3, 4]])
        arp = (6 / 1 + (2 + 1 + 1) / 3) / 2
        assert popularity_bias(recommended, POPULARITY) == pytest.approx(arp / 2.5)

    def test_users_without_recommendations_are_left_out(self) -> None:
        assert popularity_bias(np.array([[1], [0]]), POPULARITY) == pytest.approx(6 / 2.5)

    def test_the_popularity_of_padding_is_ignored(self) -> None:
        counted_padding = np.array([99, 6, 2, 1, 1])
        assert popularity_bias(np.array([[1, 0]]), counted_padding) == pytest.approx(6 / 2.5)

    def test_nothing_recommended_or_nothing_popular_is_refused(self) -> None:
        with pytest.raises(ValueError, match="at least one recommended item"):
            popularity_bias(np.array([[0, 0]]), POPULARITY)
        with pytest.raises(ValueError, match="one interaction"):
            popularity_bias(np.array([[1]]), np.zeros(5, dtype=np.int64))

    def test_a_row_outside_the_catalogue_is_refused(self) -> None:
        with pytest.raises(ValueError, match=r"outside 0\.\.4"):
            popularity_bias(np.array([[5]]), POPULARITY)


class TestNovelty:
    def test_it_is_the_mean_information_of_the_items_in_bits(self) -> None:
        recommended = np.array([[1, 2], [3, 4]])  # shares of the 10 events: 6, 2, 1 and 1
        bits = (-log2(6 / 10) - log2(2 / 10)) / 2, (-log2(1 / 10) - log2(1 / 10)) / 2
        assert novelty(recommended, POPULARITY) == pytest.approx(sum(bits) / 2)

    def test_items_half_as_popular_say_one_bit_more(self) -> None:
        assert novelty(np.array([[3]]), POPULARITY) == pytest.approx(novelty(np.array([[2]]), POPULARITY) + 1)

    def test_an_item_without_events_counts_as_one_with_a_single_event(self) -> None:
        assert novelty(np.array([[3]]), np.array([0, 6, 2, 0])) == pytest.approx(-log2(1 / 8))

    def test_a_short_list_weighs_as_much_as_a_long_one_and_an_empty_one_nothing(self) -> None:
        recommended = np.array([[1, 0], [3, 4], [0, 0]])
        assert novelty(recommended, POPULARITY) == pytest.approx((-log2(6 / 10) - log2(1 / 10)) / 2)

    def test_nothing_recommended_is_refused(self) -> None:
        with pytest.raises(ValueError, match="at least one recommended item"):
            novelty(np.array([[0, 0]]), POPULARITY)


class TestGini:
    def test_it_is_0_when_every_item_is_recommended_alike(self) -> None:
        assert gini(np.array([[1, 2], [3, 4]]), num_items=4) == 0.0

    def test_it_is_1_when_one_item_takes_all(self) -> None:
        assert gini(np.array([[3], [3], [3]]), num_items=4) == 1.0

    def test_items_that_are_never_recommended_count(self) -> None:
        counts = (0, 0, 2, 2)
        expected = (-3 * counts[0] - 1 * counts[1] + 1 * counts[2] + 3 * counts[3]) / (3 * sum(counts))
        assert gini(np.array([[1, 2, 0], [2, 1, 0]]), num_items=4) == pytest.approx(expected)

    def test_it_is_the_mean_difference_of_two_items_relative_to_the_mean(self) -> None:
        recommended = np.random.default_rng(3).integers(0, 9, (40, 5))
        counts = np.bincount(recommended.ravel(), minlength=9)[1:]
        difference = np.abs(counts[:, None] - counts).sum() / (8 * 7)
        assert gini(recommended, num_items=8) == pytest.approx(difference / (2 * counts.mean()))

    def test_a_single_item_or_no_recommendation_is_refused(self) -> None:
        for recommended, num_items in (([[1]], 1), ([[0]], 5)):
            with pytest.raises(ValueError, match="at least two"):
                gini(np.array(recommended), num_items)


class TestIntraListDiversity:
    VECTORS = np.array(
        [[9, 9], [1, 0], [5, 0], [0, 2], [-3, 0], [0, 0]]
    )  # behind padding: east twice, north, west, none

    def test_it_is_the_mean_distance_of_all_pairs(self) -> None:
        east_east, east_north = 1 - 1, 1 - 0
        expected = (east_east + east_north + east_north) / 3
        assert intra_list_diversity(np.array([[1, 2, 3]]), self.VECTORS) == pytest.approx(expected)

    def test_opposites_are_2_apart_and_the_length_of_a_vector_means_nothing(self) -> None:
        assert intra_list_diversity(np.array([[1, 4]]), self.VECTORS) == pytest.approx(2)
        assert intra_list_diversity(np.array([[1, 2]]), self.VECTORS) == pytest.approx(0)

    def test_an_item_without_features_is_like_nothing(self) -> None:
        assert intra_list_diversity(np.array([[1, 5]]), self.VECTORS) == pytest.approx(1)

    def test_lists_of_fewer_than_two_items_are_left_out(self) -> None:
        recommended = np.array([[1, 3, 0], [4, 0, 0], [0, 0, 0]])
        assert intra_list_diversity(recommended, self.VECTORS) == pytest.approx(1)
        with pytest.raises(ValueError, match="no list has two"):
            intra_list_diversity(recommended[1:], self.VECTORS)

    def test_many_users_in_parts_give_the_mean_over_their_pairs(self, monkeypatch: pytest.MonkeyPatch) -> None:
        rng = np.random.default_rng(4)
        vectors, recommended = rng.standard_normal((30, 5)), rng.integers(0, 30, (40, 6))
        directions = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        pairs = [combinations(directions[row[row > 0]], 2) for row in recommended]
        expected = np.mean([np.mean([1 - a @ b for a, b in of_user]) for of_user in pairs])
        monkeypatch.setattr("rayrec.metrics.beyond_accuracy._GATHERED", 100)
        assert intra_list_diversity(recommended, vectors) == pytest.approx(expected)
