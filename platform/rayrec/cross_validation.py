"""k-fold cross-validation of a recipe: every event is test once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
from scipy.stats import t

from rayrec.artifacts import Json, Storage
from rayrec.errors import RecipeError
from rayrec.pipeline import Pipeline
from rayrec.recipe import Recipe
from rayrec.recipe_data import Split
from rayrec.stages import Watcher
from rayrec.tracking import Tracker

LEVEL = 0.95


@dataclass(frozen=True)
class CrossValidation:
    """What came out.

    Attributes:
        recipe: Its name.
        simulated: Whether its data is simulated.
        model: The architecture.
        metric: What the model is chosen by.
        folds: How many.
        users: Ranked in each fold.
        metrics: Of each metric on the test folds: by role (``main`` and ``popular``) the ``mean``, the standard
            deviation ``sd`` and the ``values`` by fold; and ``difference``, main less popular, with its ``mean`` and
            `corrected_interval` from ``low`` to ``high``.
    """

    recipe: str
    simulated: bool
    model: str
    metric: str
    folds: int
    users: list[int]
    metrics: Json

    def to_json(self) -> Json:
        """The object that ``--json`` prints."""
        return asdict(self)


def cross_validate(
    recipe: Recipe, storage: Storage, watcher: Watcher, folds: int, on_fold: Callable[[int], None]
) -> CrossValidation:
    """Prepare, train and evaluate on every fold in turn, in one MLflow run; what has not changed is skipped.

    Args:
        recipe: The recipe.
        storage: Where everything goes.
        watcher: Who is told of the stages.
        folds: How many, 3 or more: one is test, the next one validation.
        on_fold: Told the number of each fold when it begins.

    Raises:
        RecipeError: The recipe's folds are given by its sources.
    """
    recipes, results = fold_recipes(recipe, folds), []
    with Tracker(recipe.name).run("cross-validate") as run:
        run.params(recipe.model_dump(mode="json", by_alias=True) | {"folds": folds})
        run.tags({"rayrec.simulated": recipe.simulated})
        for number, fold in enumerate(recipes):
            on_fold(number)
            with Pipeline(fold, storage, watcher, within=run, run_name=f"fold {number}") as pipeline:
                dataset, view = pipeline.prepare()
                results.append(pipeline.evaluate(dataset, view, pipeline.train(dataset, view)))
        found = _summary(recipe, results)
        for name, values in found.metrics.items():
            run.metrics({f"test/{name}": values["main"]["mean"], f"test/{name}/sd": values["main"]["sd"]})
            run.metrics({f"popular/test/{name}": values["popular"]["mean"]})
        run.json(found.to_json(), "cross_validation.json")
    return found


def fold_recipes(recipe: Recipe, folds: int) -> list[Recipe]:
    """The recipe once for every fold; nothing is trained again, since nothing is served.

    Raises:
        RecipeError: The recipe's folds are given by its sources.
    """
    data = recipe.data
    if data.split.kind == "given":
        raise RecipeError(
            f"'{recipe.name}' cannot be cross-validated: data.split.kind = given, so its sources say what is test. "
            "Leave out `fold`, `split` and the sources that are test, or evaluate it as it is."
        )
    splits = [Split(kind="k-fold", k=folds, fold=fold, seed=data.split.seed) for fold in range(folds)]
    update = {"training": replace(recipe.training, refit="none")}
    return [recipe.model_copy(update=update | {"data": data.model_copy(update={"split": split})}) for split in splits]


def corrected_interval(differences: np.ndarray, trained: int) -> tuple[float, float]:
    """95 % interval of a mean over folds, by the corrected resampled t test.

    The folds are not independent: any two trainings share most of their events, so that the plain t interval is too
    narrow. Nadeau and Bengio, "Inference for the Generalization Error", Machine Learning 52, 2003
    (https://doi.org/10.1023/A:1024068626366), therefore widen the variance ``s2 / k`` to ``(1 / k + test / train) s2``.
    They derive it for sets that are drawn at random; for k folds it is an approximation.

    Args:
        differences: ``[k]`` float64, a value of each fold that is test.
        trained: Folds that are learnt from each time.
    """
    k = len(differences)
    error = np.sqrt((1 / k + 1 / trained) * differences.var(ddof=1))
    middle, half = float(differences.mean()), float(t.ppf((1 + LEVEL) / 2, k - 1) * error)
    return middle - half, middle + half


def _summary(recipe: Recipe, results: Sequence[Json]) -> CrossValidation:
    tested = [{role: result[role]["test"] for role in ("main", "popular")} for result in results]
    shared = set.intersection(*({*of} for fold in tested for of in fold.values()))
    names = [name for name in tested[0]["main"] if "@" in name and name in shared]
    # One fold is test, and the next one validation.
    trained = len(results) - 2
    return CrossValidation(
        recipe=recipe.name,
        simulated=recipe.simulated,
        model=recipe.model.name,
        metric=recipe.training.metric,
        folds=len(results),
        users=[fold["main"]["users"] for fold in tested],
        metrics={name: _of_metric([{r: fold[r][name] for r in fold} for fold in tested], trained) for name in names},
    )


def _of_metric(folds: Sequence[dict[str, float]], trained: int) -> Json:
    values = {role: np.array([fold[role] for fold in folds]) for role in folds[0]}
    differences = values["main"] - values["popular"]
    low, high = corrected_interval(differences, trained)
    summary: Json = {
        role: {"mean": float(each.mean()), "sd": float(each.std(ddof=1)), "values": each.tolist()}
        for role, each in values.items()
    }
    return summary | {"difference": {"mean": float(differences.mean()), "low": low, "high": high}}
