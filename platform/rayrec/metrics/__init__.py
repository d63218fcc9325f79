"""How good is a model: metrics over ranks, over recommended items and over probabilities, and whether it is luck.

``ranks`` turns scores into ranks of the held-out targets, in torch; everything else is numpy. ``ranking`` turns ranks
into accuracy metrics; ``beyond_accuracy`` looks at what is recommended, whoever likes it; ``classification`` judges
predicted probabilities; ``significance`` puts intervals and tests around means over users. Nothing here knows about
models or Ray. ``ranks`` is imported by its own name, so that the rest loads without torch.

>>> import torch
>>> from rayrec.metrics.ranks import rank_targets
>>> ranks = rank_targets(torch.tensor([[0.1, 0.9, 0.5]]), targets=torch.tensor([[2]]))
>>> ranking_metrics(ranks.numpy(), ks=[2])["mrr@2"]
0.5
"""

from rayrec.metrics.beyond_accuracy import coverage, gini, intra_list_diversity, novelty, popularity_bias
from rayrec.metrics.classification import (
    CalibrationCurve,
    accuracy,
    auc,
    brier,
    calibration,
    calibration_curve,
    calibration_error,
    log_loss,
)
from rayrec.metrics.ranking import METRICS, parse_metric, ranking_metrics
from rayrec.metrics.significance import PairedTest, bootstrap_interval, holm, paired_test

__all__ = [
    "METRICS",
    "CalibrationCurve",
    "PairedTest",
    "accuracy",
    "auc",
    "bootstrap_interval",
    "brier",
    "calibration",
    "calibration_curve",
    "calibration_error",
    "coverage",
    "gini",
    "holm",
    "intra_list_diversity",
    "log_loss",
    "novelty",
    "paired_test",
    "parse_metric",
    "popularity_bias",
    "ranking_metrics",
]
