"""Users of a view by a declared feature, for metrics of each group."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from rayrec.data.dataset import Dataset, read_part
from rayrec.data.fitting import USER, load_fitted
from rayrec.data.views import open_view
from rayrec.errors import DataError
from rayrec.features.categorical import FittedCategorical

MISSING, UNKNOWN = "(missing)", "(unknown)"


def user_groups(dataset: Dataset, view: str, feature: str) -> np.ndarray:
    """The word that a categorical feature has for each user of a view, in their order: ``[U]`` objects.

    Raises:
        DataError: The view was made without this feature, or is damaged.
    """
    manifest = open_view(dataset, view)
    fitted = load_fitted(dataset, manifest).users.features.get(feature)
    if not isinstance(fitted, FittedCategorical) or fitted.config.buckets is not None:
        raise DataError(
            f"evaluation.slices: the view {view} of Dataset '{dataset.name}' has no categorical user feature "
            f"'{feature}'. Declare it in data.features.users and prepare again, or leave the slice out."
        )
    shards = [read_part(dataset.storage, shard, ["user", f"{USER}{feature}"]) for shard in manifest["shards"]]
    ids = pa.concat_tables(shards).sort_by("user")[f"{USER}{feature}"].to_numpy()
    words = np.array([MISSING, UNKNOWN, *fitted.words.to_pylist()], dtype=object)
    return np.asarray(words[ids])
