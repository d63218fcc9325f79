"""The models by name. Imported when asked for: naming a model costs nothing until it is used."""

from __future__ import annotations

import difflib
from importlib import import_module
from typing import TYPE_CHECKING

from rayrec.errors import RecipeError

if TYPE_CHECKING:
    from rayrec.models.base import Recommender

MODELS = {
    "als": "rayrec.models.als:ALS",
    "bert4rec": "rayrec.models.bert4rec:BERT4Rec",
    "bpr": "rayrec.models.bpr:BPR",
    "caser": "rayrec.models.caser:Caser",
    "content": "rayrec.models.content:Content",
    "ease": "rayrec.models.ease:EASE",
    "esasrec": "rayrec.models.esasrec:ESASRec",
    "gf-cf": "rayrec.models.gf_cf:GFCF",
    "gru4rec": "rayrec.models.gru4rec:GRU4Rec",
    "hstu": "rayrec.models.hstu:HSTU",
    "hstu-ensemble": "rayrec.models.ensemble:HSTUEnsemble",
    "item-knn": "rayrec.models.item_knn:ItemKNN",
    "item2vec": "rayrec.models.item2vec:Item2Vec",
    "lightgcn": "rayrec.models.lightgcn:LightGCN",
    "popularity": "rayrec.models.popularity:Popularity",
    "sasrec": "rayrec.models.sasrec:SASRec",
    "svd": "rayrec.models.svd:SVD",
    "two-tower": "rayrec.models.two_tower:TwoTower",
    "user-knn": "rayrec.models.user_knn:UserKNN",
}


def model_class(name: str) -> type[Recommender]:
    """The class registered as ``name``.

    Raises:
        RecipeError: No model has that name; the message gives the nearest one.
    """
    if str(name) not in MODELS:
        nearest = difflib.get_close_matches(str(name), MODELS, n=1, cutoff=0.0)[0]
        raise RecipeError(
            f"model.name: no model is called '{name}'. Did you mean '{nearest}'? Known: {', '.join(MODELS)}."
        )
    module, _, attribute = MODELS[name].partition(":")
    found: type[Recommender] = getattr(import_module(module), attribute)
    return found
