"""How an answer came about, for whoever wonders."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from rayrec.artifacts import Json
from rayrec.serving.engine import Engine
from rayrec.serving.queries import ANYTHING, Query, Wanted

LATEST = 10


def account(engine: Engine, query: Query, wanted: Wanted, seconds: Mapping[str, float]) -> Json:
    """What a query was asked with and what was left out, as it goes over HTTP."""
    known = len(query.history) > 0
    scorer = engine.scorer if known else engine.popular
    latest = [engine.scorer.item_keys[row - 1] for row in query.history[: -LATEST - 1 : -1]]
    offered = engine.limits(ANYTHING, known).within
    within = Wanted(wanted.categories, wanted.labels)
    return {
        "model": scorer.kind,
        "history": {"events": len(query.history), "latest": latest},
        "left_out": {
            "had": len(np.unique(query.history)) if engine.exclude_seen else 0,
            "not_offered": len(scorer.item_keys) - offered.count,
            "outside": offered.count - engine.limits(within, known).within.count,
            "excluded": len(scorer.rows_of(wanted.exclude)),
        },
        "milliseconds": {name: 1000 * value for name, value in seconds.items()},
    }
