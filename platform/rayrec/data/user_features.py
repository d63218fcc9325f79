"""What the recipe declares of a view's users and events: who asks, and the moment that is asked at."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import pyarrow as pa

from rayrec.artifacts import Json
from rayrec.data.dataset import Dataset, read_part
from rayrec.data.fitting import CONTEXT, USER, Table, load_fitted
from rayrec.data.item_features import feature_rows
from rayrec.data.views import open_view
from rayrec.errors import ModelError
from rayrec.features.base import Fitted
from rayrec.models.interactions import SparseRows


class OtherFeaturesError(ModelError):
    """A model reads features in other columns than those of the view that it is asked about."""


def user_features(dataset: Dataset, view: str) -> SparseRows | None:
    """The features of a view's users, ``[U]`` rows in the order of `Sequences`; see `feature_rows`.

    Returns:
        None where the recipe declares no features of users, or only words of which there are none.

    Raises:
        DataError: A part of the view is missing or was changed.
    """
    manifest = open_view(dataset, view)
    fitted = load_fitted(dataset, manifest).users.features
    return _some(feature_rows(fitted, _columns(dataset, manifest, USER, fitted))) if fitted else None


def everyones_features(dataset: Dataset, view: str) -> SparseRows | None:
    """`user_features` of everybody in the vocabulary, by their index - 1, whether or not the view has them."""
    fitted = load_fitted(dataset, open_view(dataset, view)).users
    table = Table.of(dataset, "user")
    if not fitted.features or table is None:
        return None
    encoded = table.encode(fitted, np.arange(1, len(table.rows)))
    return _some(feature_rows(fitted.features, {name: encoded[name].combine_chunks() for name in fitted.features}))


def context_features(dataset: Dataset, view: str, chosen: np.ndarray) -> SparseRows | None:
    """The context of the chosen events (``[N]`` bool, in the order of `Sequences`), a row each; see `feature_rows`.

    Returns:
        None where the recipe declares no features of the context, or only words of which there are none.

    Raises:
        DataError: A part of the view is missing or was changed.
    """
    manifest = open_view(dataset, view)
    fitted = load_fitted(dataset, manifest).context.features
    if not fitted:
        return None
    lists, mask = _columns(dataset, manifest, CONTEXT, fitted), pa.array(chosen)
    return _some(feature_rows(fitted, {name: column.flatten().filter(mask) for name, column in lists.items()}))


def feature_digests(dataset: Dataset, view: str, names: Collection[str]) -> dict[str, str]:
    """What the columns of features (of the ``user``, of the ``context``) depend on: the digests of their transforms."""
    if not names:
        return {}
    fitted = load_fitted(dataset, open_view(dataset, view))
    digests = {"user": fitted.users.digest, "context": fitted.context.digest}
    return {name: digests[name] for name in names}


def check_features(bundle: Json, path: str, dataset: Dataset, view: str) -> None:
    """Whether the features of a view are what a model reads.

    Args:
        bundle: The manifest of its bundle.
        path: Of the bundle.
        dataset: The Dataset of the view.
        view: Digest of the view.

    Raises:
        OtherFeaturesError: Its features were fitted to other data, so that columns stand for something else.
    """
    made, found = bundle.get("features", {}), feature_digests(dataset, view, bundle.get("widths", {}))
    other = [name for name, digest in found.items() if made.get(name) != digest]
    if other:
        raise OtherFeaturesError(
            f"{path} reads features of the {' and the '.join(other)} as they were fitted to other data than the view "
            f"{view} of Dataset '{dataset.name}', whose columns stand for something else. Train it again on this view."
        )


def _some(features: SparseRows) -> SparseRows | None:
    return features if features.width else None


def _columns(dataset: Dataset, manifest: Json, prefix: str, fitted: Mapping[str, Fitted]) -> dict[str, pa.Array]:
    """Columns of a view's shards, by the names of the features, in the order of users."""
    names = [f"{prefix}{name}" for name in fitted]
    shards = [read_part(dataset.storage, shard, ["user", *names]) for shard in manifest["shards"]]
    table = pa.concat_tables(shards).sort_by("user")
    return {name: table[f"{prefix}{name}"].combine_chunks() for name in fitted}
