"""Datasets and Releases without Ray."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.data.conftest import logs, make_recipe, store, without_ray

from rayrec.artifacts import Json, Storage
from rayrec.data.dataset import Dataset
from rayrec.data.prepare import prepare
from rayrec.evaluation.compare import Entrant
from rayrec.features.histories import Histories
from rayrec.inference.bundle import publish_bundle
from rayrec.inference.release import publish_release
from rayrec.models.interactions import Interactions, here
from rayrec.models.popularity import Popularity, PopularityConfig
from rayrec.recipe import Evaluation, Recipe

__all__ = ["logs", "make_recipe", "store", "without_ray"]

View = tuple[Dataset, str]


@pytest.fixture
def prepared(
    without_ray: None, make_recipe: Callable[..., Recipe], logs: Path, store: Storage
) -> Callable[[Mapping[str, str]], View]:
    """A Dataset and view of histories: a letter an item, an event a minute, the users one after the other."""

    def make(histories: Mapping[str, str], **data: Any) -> View:
        rows = [
            f"{user},{item},{1_700_000_000 + 600 * place + 60 * step}"
            for place, (user, items) in enumerate(histories.items())
            for step, item in enumerate(items)
        ]
        (logs / "log.csv").write_text("\n".join(["user,item,time", *rows]))
        made = prepare(make_recipe(**data), store)
        return made.dataset, made.view

    return make


@pytest.fixture
def entrant(store: Storage) -> Callable[..., Entrant]:
    """A Release that gives everybody the items in this order, said to be trained on folds of a view.

    With another order for ``before``, that one was trained on the training fold, and the other again on these folds.
    """

    def bundle(made_from: Json, order: str, folds: Sequence[str]) -> str:
        model = Popularity(PopularityConfig(), len(order))
        model.exports = False  # an export takes a second
        events = [[row] * (len(order) - place) for place, row in enumerate(range(1, len(order) + 1))]
        model.fit(Interactions(Histories.of(events), len(order)), here, seed=0)
        lineage = made_from | {"training": {"folds": folds}}
        return publish_bundle(store, "test", model, list(order), [], lineage, {})

    def make(
        number: int, view: View, order: str, folds: Sequence[str] = ("train",), before: str = "", **evaluation: Any
    ) -> Entrant:
        dataset, digest = view
        pinned = {"name": dataset.name, "manifest": dataset.number, "digest": dataset.digest}
        made_from = {"dataset": pinned, "view": digest}
        main = {"main": bundle(made_from, order, folds)}
        content = {
            "name": "test",
            "simulated": False,
            "models": main,
            "served": {"evaluated": {"main": bundle(made_from, before, ["train"])} if before else main},
            "dataset": {**pinned, "view": digest},
            "evaluation": Evaluation(**{"ks": (1, 3), **evaluation}).model_dump(mode="json"),
            "metric": "ndcg@3",
        }
        return Entrant(f"test/{number}", publish_release(store, content))

    return make
