"""A warm start: a training begins with the weights of an older model, the rows of items carried over by key."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor, nn

from rayrec.artifacts import Json, Storage
from rayrec.errors import ModelError
from rayrec.inference.bundle import open_bundle
from rayrec.models.base import Recommender


@dataclass(frozen=True)
class Parent:
    """The model that a training begins with.

    Attributes:
        reference: What the recipe says.
        release: Digest of the Release it is of.
        bundle: Its path.
        storage: Where it is.
    """

    reference: str
    release: str
    bundle: str
    storage: Storage

    @property
    def lineage(self) -> Json:
        """What the new model's bundle says of it."""
        return {"release": self.release, "bundle": self.bundle}

    def give(self, model: Recommender, item_keys: Sequence[str], features: Mapping[str, str]) -> None:
        """Give a model, after `Recommender.observe`, the weights of this one.

        Args:
            model: The model.
            item_keys: The key of each of its item rows from 1 on.
            features: What the columns of the features that it reads depend on, see `feature_digests`.

        Raises:
            ModelError: It is another kind of model, of other sizes, knows none of the items, or reads features that
                were fitted otherwise.
        """
        check_kept(model)
        bundle = open_bundle(self.storage, self.bundle)
        if bundle.manifest["kind"] != model.kind:
            raise ModelError(
                f"training.warm_start: {self.reference} is a '{bundle.manifest['kind']}', and the recipe's model a "
                f"'{model.kind}'. A training begins with a model of its own kind: change one of them."
            )
        if bundle.manifest.get("features", {}) != features:
            raise ModelError(
                f"training.warm_start: the features of users or contexts that {self.reference} reads were fitted to "
                "other data, so its weights are of other columns. Leave the setting out, or declare no features."
            )
        rows = rows_by_key(bundle.item_keys, item_keys)
        if not (rows > 0).any():
            raise ModelError(
                f"training.warm_start: {self.reference} knows none of the {len(item_keys):,} items of this Dataset "
                f"(it has '{bundle.item_keys[0]}', here is '{item_keys[0]}'). Leave the setting out, or name a Release "
                "of the same items."
            )
        carry_over(bundle.model(), model, rows)


def rows_by_key(older: Sequence[str], newer: Sequence[str]) -> Tensor:
    """The older model's row of each of the newer one's, by item key.

    Args:
        older: The key of each item row from 1 on.
        newer: Likewise.

    Returns:
        ``[len(newer) + 1]`` int64; -1 for items that the older model does not know; padding stays padding.

    Example::

        >>> rows_by_key(["a", "b"], ["b", "c", "a"])
        tensor([ 0,  2, -1,  1])
    """
    found = pc.index_in(pa.array(newer, pa.string()), pa.array(older, pa.string()))
    places = np.asarray(pc.fill_null(found, -2), np.int64)
    return torch.from_numpy(np.append(0, places + 1))


def carry_over(older: Recommender, newer: Recommender, rows: Tensor) -> None:
    """Copy the weights of a model into one of its kind. Items that it does not know keep their first vectors.

    Args:
        older: The model.
        newer: A fresh one, of other items.
        rows: As `rows_by_key` gives them.

    Raises:
        ModelError: The sizes differ.
    """
    theirs, ours, by_item = dict(older.named_parameters()), dict(newer.named_parameters()), newer.rows_of_items()
    for name in sorted(theirs.keys() | ours.keys()):
        # Of items there may be more, or fewer.
        there, here = (_size(weights.get(name), name in by_item) for weights in (theirs, ours))
        if there != here:
            raise ModelError(
                f"training.warm_start: the older model is of another size: its weights '{name}' are {there}, here they "
                f"are {here}. Its settings: {_other_settings(older.config, newer.config)}. Use them, or leave the "
                "setting out."
            )
    known = rows >= 0
    with torch.no_grad():
        for name, weights in ours.items():
            if not weights.requires_grad:
                # What these events have no use for, such as HSTU's gaps where there are no times.
                continue
            if name in by_item:
                weights[known.to(weights.device)] = theirs[name][rows[known]].to(weights)
            else:
                weights.copy_(theirs[name])


def check_kept(model: Recommender) -> None:
    """Whether a model of this kind, that has seen the events, can begin with another one's weights.

    Raises:
        ModelError: It learns from what is not kept.
    """
    if any(name.startswith(f"{part}.") for part in model.transient for name, _ in model.named_parameters()):
        raise ModelError(
            f"training.warm_start: what a '{model.kind}' learns from is not kept with it, so no training can begin "
            "with it. Leave the setting out."
        )


def _other_settings(older: Any, newer: Any) -> str:
    """The settings of a model's older configuration that are not the newer one's."""
    here = dataclasses.asdict(newer)
    return ", ".join(f"{key} {value}" for key, value in dataclasses.asdict(older).items() if value != here[key])


def _size(weights: nn.Parameter | None, by_item: bool) -> str:
    return "not there" if weights is None else str([*(["items"] if by_item else []), *weights.shape[int(by_item) :]])
