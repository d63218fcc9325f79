"""How good are recommendations: numpy metrics over ranks and over recommended items.

``ranking`` turns scores into ranks of the held-out targets and ranks into accuracy metrics;
``beyond_accuracy`` looks at what is recommended, whoever likes it. Nothing here knows about models, torch or Ray.

>>> import numpy as np
>>> scores = np.array([[0.1, 0.9, 0.5]], dtype=np.float32)
>>> ranks = rank_targets(scores, targets=np.array([[2]]))
>>> ranking_metrics(ranks, ks=[2])["mrr@2"]
0.5
"""

from rayrec.metrics.beyond_accuracy import coverage, popularity_bias
from rayrec.metrics.ranking import METRICS, parse_metric, rank_targets, ranking_metrics

__all__ = ["METRICS", "coverage", "parse_metric", "popularity_bias", "rank_targets", "ranking_metrics"]
