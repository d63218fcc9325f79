"""How good are predicted probabilities, of a click for instance: do they order, and do they mean what they say.

Every metric takes one number per event, [N] of any float type, and ``labels`` [N], 0 or 1 (bool, int or float), and
counts in float64. ``auc`` looks at the order only, ``calibration`` and ``calibration_error`` at the level only,
``log_loss`` and ``brier`` at both.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]

CLIP = 1e-7
"""How far ``log_loss`` keeps probabilities from 0 and 1, about what float32 can tell from 1."""


def auc(scores: npt.ArrayLike, labels: npt.ArrayLike, weights: npt.ArrayLike | None = None) -> float:
    """Area under the ROC curve: the chance that a positive event scores above a negative one, ties counting half.

    The Mann-Whitney statistic by ranks (Hanley & McNeil, Radiology 1982): exact, O(N log N), 0.5 for guessing. Scores
    need not be probabilities.

    Args:
        scores: [N], higher for what is more likely positive; infinite scores are fine.
        labels: [N].
        weights: [N], at least 0, how often each event counts; once by default.

    Raises:
        ValueError: shapes disagree, a score is NaN, a label is neither 0 nor 1, or one class has no weight.

    >>> auc([0.1, 0.4, 0.4, 0.8], [0, 0, 1, 1])
    0.875
    """
    score, label = _checked(scores, labels)
    weight = np.ones_like(label) if weights is None else np.asarray(weights, dtype=np.float64)
    if weight.shape != label.shape or not (weight >= 0).all():
        raise ValueError(f"weights must be {label.shape} numbers of at least 0, one per event")
    _, level = np.unique(score, return_inverse=True)
    positive = np.bincount(level, weight * label)
    negative = np.bincount(level, weight * (1 - label))
    if not positive.any() or not negative.any():
        raise ValueError("auc compares positive with negative events, and here is one class only")
    below = np.cumsum(negative) - negative / 2
    return float(positive @ below / (positive.sum() * negative.sum()))


def log_loss(probabilities: npt.ArrayLike, labels: npt.ArrayLike) -> float:
    """Mean negative log likelihood in nats: ``-mean(y * log(p) + (1 - y) * log(1 - p))``.

    Probabilities are clipped to [1e-7, 1 - 1e-7] first, so that one event predicted with certainty and wrongly costs
    16.1 nats rather than infinity.

    >>> round(log_loss([0.5, 0.5], [0, 1]), 4)
    0.6931
    """
    probability, label = _checked_probabilities(probabilities, labels)
    clipped = np.clip(probability, CLIP, 1 - CLIP)
    return float(-np.mean(label * np.log(clipped) + (1 - label) * np.log1p(-clipped)))


def accuracy(probabilities: npt.ArrayLike, labels: npt.ArrayLike, threshold: float = 0.5) -> float:
    """The share of events on the right side of the threshold; a probability equal to it predicts a positive.

    >>> accuracy([0.2, 0.5, 0.9, 0.9], [0, 1, 1, 0])
    0.75
    """
    probability, label = _checked_probabilities(probabilities, labels)
    return float(np.mean((probability >= threshold) == (label == 1)))


def brier(probabilities: npt.ArrayLike, labels: npt.ArrayLike) -> float:
    """Mean squared error of the probabilities, ``mean((p - y) ** 2)`` (Brier, Monthly Weather Review 1950).

    >>> brier([0.5, 1.0], [0, 1])
    0.125
    """
    probability, label = _checked_probabilities(probabilities, labels)
    return float(np.mean((probability - label) ** 2))


def calibration(probabilities: npt.ArrayLike, labels: npt.ArrayLike) -> float:
    """Mean predicted over mean observed: 1 is calibrated on average, 2 promises twice the clicks that come.

    The "calibration" of He et al. (ADKDD 2014): expected over actual clicks.

    Raises:
        ValueError: as for all, or nothing positive was observed.

    >>> calibration([0.5, 0.5, 0.5, 0.5], [0, 1, 0, 0])
    2.0
    """
    probability, label = _checked_probabilities(probabilities, labels)
    if not label.any():
        raise ValueError("calibration divides by the share of positive events, and here is none")
    return float(probability.mean() / label.mean())


@dataclass(frozen=True)
class CalibrationCurve:
    """What was predicted and what happened, by bins of like probability, lowest first.

    Attributes:
        predicted: float64 [bins], the mean probability of each bin.
        observed: float64 [bins], its share of positive events.
        events: int64 [bins], how many it holds; none is empty.
    """

    predicted: FloatArray
    observed: FloatArray
    events: npt.NDArray[np.int64]


def calibration_curve(probabilities: npt.ArrayLike, labels: npt.ArrayLike, bins: int = 15) -> CalibrationCurve:
    """A reliability diagram: equally many events to a bin, which calibrated probabilities put on the diagonal.

    Bins end at quantiles rather than at equal steps, as nearly all click probabilities would share the first step.
    Equal probabilities stay together, so the order of the events does not matter and there may be fewer bins.

    >>> calibration_curve([0.1, 0.1, 0.9, 0.9], [0, 0, 0, 1], bins=2).observed
    array([0. , 0.5])
    """
    if bins < 1:
        raise ValueError(f"bins must be at least 1, got {bins}")
    probability, label = _checked_probabilities(probabilities, labels)
    ends = np.quantile(probability, np.arange(1, bins) / bins, method="inverted_cdf")
    place = np.searchsorted(ends, probability)
    events = np.bincount(place)
    held = events > 0
    predicted, observed = (np.bincount(place, values)[held] / events[held] for values in (probability, label))
    return CalibrationCurve(predicted, observed, events[held])


def calibration_error(probabilities: npt.ArrayLike, labels: npt.ArrayLike, bins: int = 15) -> float:
    """Expected calibration error: the mean over events of ``|predicted - observed|`` of their bin, from 0 to 1.

    ECE of Guo et al. (ICML 2017) for the probability of the positive class, in the bins of ``calibration_curve``:
    equally many events to a bin (Nguyen & O'Connor, EMNLP 2015), where Guo et al. take 15 equal steps.

    >>> round(calibration_error([0.1, 0.1, 0.9, 0.9], [0, 0, 0, 1], bins=2), 4)
    0.25
    """
    curve = calibration_curve(probabilities, labels, bins)
    return float(np.average(np.abs(curve.predicted - curve.observed), weights=curve.events))


def _checked(scores: npt.ArrayLike, labels: npt.ArrayLike) -> tuple[FloatArray, FloatArray]:
    score, label = np.asarray(scores, dtype=np.float64), np.asarray(labels, dtype=np.float64)
    if score.ndim != 1 or score.shape != label.shape or not len(score):
        raise ValueError(f"scores and labels must be [N] with N at least 1, got {score.shape} and {label.shape}")
    if np.isnan(score).any():
        raise ValueError(f"{np.isnan(score).sum()} of {len(score)} scores are NaN")
    if not ((label == 0) | (label == 1)).all():
        raise ValueError("labels must be 0 or 1")
    return score, label


def _checked_probabilities(probabilities: npt.ArrayLike, labels: npt.ArrayLike) -> tuple[FloatArray, FloatArray]:
    probability, label = _checked(probabilities, labels)
    if ((probability < 0) | (probability > 1)).any():
        raise ValueError("probabilities must be from 0 to 1; pass logits through a sigmoid first")
    return probability, label
