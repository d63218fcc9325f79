"""What the recipe declares of a view's users and events: who asks, and the moment that is asked at."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow as pa

from rayrec.artifacts import Json
from rayrec.data.dataset import Dataset, read_part
from rayrec.data.fitting import CONTEXT, USER, load_fitted
from rayrec.data.item_features import feature_rows
from rayrec.data.views import open_view
from rayrec.features.base import Fitted
from rayrec.models.interactions import SparseRows


def user_features(dataset: Dataset, view: str) -> SparseRows | None:
    """The features of a view's users, ``[U]`` rows in the order of `Sequences`; see `feature_rows`.

    Returns:
        None where the recipe declares no features of users.

    Raises:
        DataError: A part of the view is missing or was changed.
    """
    manifest = open_view(dataset, view)
    fitted = load_fitted(dataset, manifest).users.features
    return feature_rows(fitted, _columns(dataset, manifest, USER, fitted)) if fitted else None


def context_features(dataset: Dataset, view: str, chosen: np.ndarray) -> SparseRows | None:
    """The context of the chosen events (``[N]`` bool, in the order of `Sequences`), a row each; see `feature_rows`.

    Returns:
        None where the recipe declares no features of the context.

    Raises:
        DataError: A part of the view is missing or was changed.
    """
    manifest = open_view(dataset, view)
    fitted = load_fitted(dataset, manifest).context.features
    if not fitted:
        return None
    lists, mask = _columns(dataset, manifest, CONTEXT, fitted), pa.array(chosen)
    return feature_rows(fitted, {name: column.flatten().filter(mask) for name, column in lists.items()})


def _columns(dataset: Dataset, manifest: Json, prefix: str, fitted: Mapping[str, Fitted]) -> dict[str, pa.Array]:
    """Columns of a view's shards, by the names of the features, in the order of users."""
    names = [f"{prefix}{name}" for name in fitted]
    shards = [read_part(dataset.storage, shard, ["user", *names]) for shard in manifest["shards"]]
    table = pa.concat_tables(shards).sort_by("user")
    return {name: table[f"{prefix}{name}"].combine_chunks() for name in fitted}
