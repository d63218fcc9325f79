"""What coverage and popularity bias promise, computed by hand."""

import numpy as np
import pytest

from rayrec.metrics.beyond_accuracy import coverage, popularity_bias

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
