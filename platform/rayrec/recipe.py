"""The recipe: the one typed description of a recommender.

Every section is validated whole before any work starts. `rayrec.recipe_files` finds, reads and overrides recipes.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, Literal

import pydantic
from pydantic import BeforeValidator, ConfigDict, Field, field_serializer, field_validator, model_validator

from rayrec.artifacts import Json
from rayrec.features.categorical import Categorical
from rayrec.metrics.ranking import METRICS, parse_metric
from rayrec.models.checks import require
from rayrec.models.optimization import Optimization
from rayrec.recipe_data import Data, Section
from rayrec.recipe_serving import Serving

FOLDS = ("train", "validation", "test")
NAME_PATTERN = r"^[a-z0-9][a-z0-9_.-]{0,62}$"


def _yes_or_no(value: object) -> object:
    """YAML reads a bare ``yes`` or ``no`` as a truth value."""
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else value


@dataclasses.dataclass(frozen=True)
class ModelChoice:
    """A model's name and the config of its architecture."""

    name: str
    config: Any


@pydantic.dataclasses.dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Training(Optimization):
    """How the model is trained: the loop's settings, and where it runs.

    Attributes:
        workers: Training processes; 0 trains in the calling process, without start-up and without restarts. By default
            one, or none for a view of fewer than 500,000 events where there are no GPUs.
        min_workers: Go on with so few while the cluster has no room for all; by default it is waited for.
        hung: What a worker that does not answer does: ``stop`` the training, or have all workers ``restart`` from the
            last checkpoint, as when one dies.
        memory_mb: A view whose events take more than so many MB of a worker's memory is read from files of its machine.
            By default half of the machine's memory, shared out among its workers.
        gpus: Whether workers get a GPU each; ``auto`` gives them one where the cluster has enough.
        refit: What is served. ``none``: the model that was trained on the training fold. ``validation``: one trained
            again with the same settings, as many epochs as were best, on validation events too; ``all``: on all events.
        threads: Threads a worker; by default its share of the machine's cores. The last digits of results depend on it.
        warm_start: Begin with the weights of this Release's model: ``NAME`` (the champion), ``NAME@ALIAS`` or
            ``NAME/VERSION``. Items are matched by key; new ones begin at random.
    """

    workers: Annotated[int, Field(ge=0)] | None = None
    min_workers: Annotated[int, Field(ge=1)] | None = None
    hung: Literal["stop", "restart"] = "stop"
    memory_mb: Annotated[int, Field(ge=1)] | None = None
    gpus: Annotated[Literal["auto", "yes", "no"], BeforeValidator(_yes_or_no)] = "auto"
    refit: Literal["none", "validation", "all"] = "none"
    threads: Annotated[int, Field(ge=1)] | None = None
    warm_start: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        parse_metric(self.metric)
        fewest, most = self.min_workers, self.workers
        require(fewest is None or most is not None, "min_workers needs workers: set how many there should be")
        require(fewest is None or fewest <= (most or 0), f"min_workers must not be above workers, as {fewest} is")
        require(most != 0 or self.gpus != "yes", "gpus = yes needs a worker: set workers to 1 or more")

    @property
    def served_folds(self) -> tuple[str, ...]:
        """What the model that is served has learnt from."""
        return {"none": FOLDS[:1], "validation": FOLDS[:2], "all": FOLDS}[self.refit]


class Evaluation(Section):
    """What is measured on the held-out events."""

    metrics: tuple[str, ...] = Field(tuple(METRICS), description="Accuracy metrics, without the cut-off.")
    ks: tuple[Annotated[int, Field(ge=1, le=10_000)], ...] = Field(
        (1, 5, 10, 20), min_length=1, description="Cut-offs."
    )
    exclude_seen: bool = Field(True, description="Do not recommend what the user already had.")
    history_lengths: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (10, 50, 200), description="Bounds of the slices by length of history."
    )
    slices: tuple[str, ...] = Field(
        (), description="Categorical features of users (`data.features.users`) to measure each group of."
    )

    def metric_names(self, also: str) -> tuple[str, ...]:
        """Every metric at every cut-off, such as ``ndcg@10``, and one more, unless it is among them."""
        names = [f"{metric}@{k}" for k in sorted(set(self.ks)) for metric in self.metrics]
        return tuple(dict.fromkeys([*names, also]))

    @field_validator("metrics")
    @classmethod
    def _known(cls, metrics: tuple[str, ...]) -> tuple[str, ...]:
        for metric in metrics:
            parse_metric(f"{metric}@1")
        return metrics


class Recipe(Section):
    """A recommender, from its logs to its endpoint."""

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)

    version: Literal[1] = Field(1, alias="schema", description="Version of the recipe's format.")
    name: str = Field(pattern=NAME_PATTERN, description="Name of the Dataset, the model and the Release.")
    storage: str | None = Field(
        None, description="Where everything is kept: a path or URI. Default RAYREC_STORAGE, then RAYREC_HOME."
    )
    data: Data
    model: Annotated[ModelChoice, pydantic.SkipValidation, pydantic.WithJsonSchema({"type": "object"})]
    training: Training = Training()
    evaluation: Evaluation = Evaluation()
    serving: Serving = Serving()
    simulated: bool = Field(False, description="Marks a recipe whose data is simulated.")

    @model_validator(mode="after")
    def _slices_are_declared(self) -> Recipe:
        sliceable = [n for n, f in self.data.features.users.items() if isinstance(f, Categorical) and f.buckets is None]
        for name in self.evaluation.slices:
            if name not in sliceable:
                known = ", ".join(sliceable) or "none"
                raise ValueError(
                    f"evaluation.slices: '{name}' is no categorical feature of data.features.users without `buckets`. "
                    f"Those are: {known}"
                )
        return self

    @model_validator(mode="after")
    def _refit_has_something_to_add(self) -> Recipe:
        split = self.data.split
        given = split.kind == "given" and all(source.fold != "validation" for source in self.data.sources)
        if self.training.refit == "validation" and given and not split.validation_share:
            raise ValueError(
                "training.refit = 'validation': the sources give no validation events to add. Set training.refit to "
                "none or all, or data.split.validation to a share of the training events such as 0.1"
            )
        return self

    @field_serializer("model")
    def _model_section(self, choice: ModelChoice) -> Json:
        return {"name": choice.name, **dataclasses.asdict(choice.config)}

    def sections(self, *names: str) -> Json:
        """The named sections as JSON: what a stage that reads only these depends on."""
        return self.model_dump(mode="json", include=set(names))

    @property
    def metric_names(self) -> tuple[str, ...]:
        """The metrics to compute, such as ``ndcg@10``, the validation metric included."""
        return self.evaluation.metric_names(self.training.metric)
