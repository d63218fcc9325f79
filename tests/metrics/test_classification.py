"""What the metrics of probabilities promise: values worked out by hand, and agreement with scikit-learn."""

from __future__ import annotations

from collections.abc import Callable
from math import log

import numpy as np
import pytest

from rayrec.metrics.classification import (
    accuracy,
    auc,
    brier,
    calibration,
    calibration_curve,
    calibration_error,
    log_loss,
)

PREDICTED = np.array([0.1, 0.4, 0.4, 0.8])
CLICKED = np.array([0, 0, 1, 1])


class TestAuc:
    def test_it_is_the_share_of_pairs_in_the_right_order_ties_counting_half(self) -> None:
        # 0.4 beats 0.1 and ties with 0.4; 0.8 beats both.
        assert auc(PREDICTED, CLICKED) == (1 + 0.5 + 1 + 1) / 4

    def test_it_is_half_where_everything_scores_alike_and_0_where_all_is_upside_down(self) -> None:
        assert auc(np.zeros(4), CLICKED) == 0.5
        assert auc([2.0, 1.0], [0, 1]) == 0.0

    def test_only_the_order_matters(self) -> None:
        assert auc(np.log(PREDICTED) * 100, CLICKED) == auc(PREDICTED, CLICKED)
        assert auc([-np.inf, 0.0, np.inf], [0, 0, 1]) == 1.0

    def test_a_weight_counts_an_event_so_many_times(self) -> None:
        weights = np.array([3, 0, 1, 2])
        repeated = auc(np.repeat(PREDICTED, weights), np.repeat(CLICKED, weights))
        assert auc(PREDICTED, CLICKED, weights) == pytest.approx(repeated)

    def test_one_class_alone_is_refused_also_where_the_other_has_no_weight(self) -> None:
        for labels, weights in (([1, 1], [1, 1]), ([0, 0], [1, 1]), ([0, 1], [0, 1])):
            with pytest.raises(ValueError, match="one class only"):
                auc([0.1, 0.2], labels, weights)

    @pytest.mark.parametrize("weights", [[1.0], [1.0, -1.0], [1.0, np.nan]])
    def test_weights_that_are_none_are_refused(self, weights: list[float]) -> None:
        with pytest.raises(ValueError, match="weights"):
            auc([0.1, 0.2], [0, 1], weights)


class TestProbabilities:
    def test_log_loss_is_the_mean_surprise_in_nats(self) -> None:
        assert log_loss([0.8, 0.4], [1, 0]) == pytest.approx(-(log(0.8) + log(0.6)) / 2)

    def test_a_certain_miss_costs_16_nats_and_not_infinity(self) -> None:
        assert log_loss([0.0, 1.0], [1, 0]) == pytest.approx(-log(1e-7))
        assert log_loss([0.0, 1.0], [0, 1]) == pytest.approx(1e-7)

    def test_accuracy_counts_the_threshold_as_a_positive(self) -> None:
        assert accuracy([0.5, 0.5, 0.4, 0.9], [1, 0, 0, 1]) == 3 / 4
        assert accuracy([0.5, 0.5, 0.4, 0.9], [1, 0, 0, 1], threshold=0.6) == 3 / 4
        assert accuracy([0.5, 0.9], [0, 1], threshold=0.6) == 1.0

    def test_brier_is_the_mean_squared_error(self) -> None:
        assert brier(PREDICTED, CLICKED) == pytest.approx((0.1**2 + 0.4**2 + 0.6**2 + 0.2**2) / 4)

    def test_calibration_is_predicted_over_observed(self) -> None:
        assert calibration([0.2, 0.4], [0, 1]) == pytest.approx(0.3 / 0.5)
        with pytest.raises(ValueError, match="here is none"):
            calibration([0.2, 0.4], [0, 0])


class TestCalibrationCurve:
    def test_it_has_equally_many_events_in_each_bin(self) -> None:
        curve = calibration_curve([0.9, 0.1, 0.3, 0.7], [1, 0, 1, 1], bins=2)
        np.testing.assert_allclose(curve.predicted, [(0.1 + 0.3) / 2, (0.7 + 0.9) / 2])
        assert curve.observed.tolist() == [1 / 2, 2 / 2]
        assert curve.events.tolist() == [2, 2]

    def test_equal_probabilities_stay_together_whatever_their_order(self) -> None:
        for labels in ([1, 1, 0, 0], [0, 0, 1, 1], [1, 0, 1, 0]):
            curve = calibration_curve([0.3, 0.3, 0.3, 0.3], labels, bins=2)
            assert (curve.observed.tolist(), curve.events.tolist()) == ([0.5], [4])

    def test_more_bins_than_events_put_each_event_in_its_own(self) -> None:
        assert calibration_curve([0.2, 0.6], [0, 1], bins=15).events.tolist() == [1, 1]

    def test_the_error_weighs_each_bins_gap_by_its_events(self) -> None:
        probabilities, labels = [0.1, 0.1, 0.1, 0.7], [0, 0, 1, 1]
        expected = (3 * abs(0.1 - 1 / 3) + 1 * abs(0.7 - 1)) / 4
        assert calibration_error(probabilities, labels, bins=4) == pytest.approx(expected)

    def test_a_calibrated_model_has_almost_no_error_and_an_overconfident_one_has(self) -> None:
        rng = np.random.default_rng(5)
        probabilities = rng.beta(1, 20, 100_000)  # clicks are rare: one in 21
        labels = rng.random(100_000) < probabilities
        assert calibration_error(probabilities, labels) < 0.005
        assert calibration_error(np.minimum(2 * probabilities, 1), labels) == pytest.approx(1 / 21, abs=0.005)


@pytest.mark.parametrize("metric", [auc, log_loss, accuracy, brier, calibration, calibration_curve, calibration_error])
class TestEveryMetric:
    @pytest.mark.parametrize(
        ("scores", "labels", "message"),
        [
            ([], [], "at least 1"),
            ([0.1], [0, 1], "must be"),
            ([[0.1, 0.2]], [[0, 1]], "must be"),
            ([0.1, np.nan], [0, 1], "1 of 2 scores are NaN"),
            ([0.1, 0.2], [0, 2], "0 or 1"),
            ([0.1, 0.2], [0, np.nan], "0 or 1"),
        ],
    )
    def test_what_is_no_score_and_no_label_is_refused(
        self, metric: Callable[..., object], scores: list[float], labels: list[float], message: str
    ) -> None:
        with pytest.raises(ValueError, match=message):
            metric(scores, labels)

    def test_what_is_no_probability_is_refused_except_for_the_order(self, metric: Callable[..., object]) -> None:
        if metric is auc:
            assert metric([-3.0, 4.0], [0, 1]) == 1.0
        else:
            with pytest.raises(ValueError, match="sigmoid"):
                metric([-3.0, 4.0], [0, 1])


@pytest.mark.parametrize("seed", range(20))
def test_scikit_learn_agrees(seed: int) -> None:
    import sklearn.metrics as theirs  # it comes with MLflow

    rng = np.random.default_rng(seed)
    probabilities = rng.integers(1, 20, 300) / 20  # with ties
    labels, weights = rng.random(300) < probabilities, rng.random(300)
    assert auc(probabilities, labels) == pytest.approx(theirs.roc_auc_score(labels, probabilities), rel=1e-12)
    weighted = theirs.roc_auc_score(labels, probabilities, sample_weight=weights)
    assert auc(probabilities, labels, weights) == pytest.approx(weighted, rel=1e-12)
    assert log_loss(probabilities, labels) == pytest.approx(theirs.log_loss(labels, probabilities), rel=1e-12)
    assert brier(probabilities, labels) == pytest.approx(theirs.brier_score_loss(labels, probabilities), rel=1e-12)
    assert accuracy(probabilities, labels) == theirs.accuracy_score(labels, probabilities >= 0.5)
