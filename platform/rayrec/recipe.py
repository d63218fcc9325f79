"""The recipe: the one typed description of a recommender.

Every section is validated whole before any work starts. `rayrec.recipe_files` finds, reads and overrides recipes.
"""

from __future__ import annotations

import dataclasses
import datetime
from typing import Annotated, Any, Literal

import pydantic
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_serializer, field_validator, model_validator

from rayrec.artifacts import Json
from rayrec.metrics.ranking import METRICS, parse_metric
from rayrec.models.optimization import Optimization

NAME_PATTERN = r"^[a-z0-9][a-z0-9_.-]{0,62}$"
Column = Annotated[str | int, Field(description="A column's name, or its position from 0 where there is no header.")]


def _yes_or_no(value: object) -> object:
    """YAML reads a bare ``yes`` or ``no`` as a truth value."""
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else value


def _iso(value: object) -> object:
    """YAML reads a bare ``2025-03-31`` as a date."""
    return value.isoformat() if isinstance(value, datetime.date) else value


ShareOrMoment = Annotated[float | str, BeforeValidator(_iso)]


class Section(BaseModel):
    """Base of all sections: unknown keys are refused, and nothing changes after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class EventColumns(Section):
    """Which column of the log means what."""

    user: Column = Field(description="Who.")
    item: Column = Field(description="What.")
    timestamp: Column | None = Field(None, description="When; without it, the file's order is time.")
    type: Column | None = Field(None, description="Kind of event, such as view or purchase.")
    value: Column | None = Field(None, description="A number with the event, such as a rating.")


class TableSource(Section):
    """Files with the same columns."""

    path: str = Field(description="A file, folder or glob; `rayrec://NAME/FILE` for a data set rayrec can fetch.")
    format: Literal["auto", "csv", "jsonl", "parquet"] = Field("auto", description="By default from the file's name.")
    separator: str = Field("auto", description="Of CSV columns; any text. By default found from the first lines.")
    header: bool = Field(True, description="Whether the first line of a CSV file names the columns.")
    encoding: str = Field("utf-8", description="Of text files.")


class EventSource(TableSource):
    """A log of events."""

    columns: EventColumns
    type: str = Field("event", description="Type of events that have no type column.")
    time_unit: Literal["auto", "s", "ms", "iso"] = Field(
        "auto",
        description="Of timestamps: epoch seconds, epoch milliseconds, ISO 8601; by default told apart by value.",
    )
    context: tuple[str, ...] = Field((), description="Further columns kept with each event.")


class ItemColumns(Section):
    """Which column of the item table means what."""

    item: Column = Field(description="The key, as in the log.")
    title: Column | None = Field(None, description="What people call it.")
    categories: Column | None = Field(None, description="Its categories in one column.")


class ItemSource(TableSource):
    """A table of items."""

    columns: ItemColumns
    category_separator: str = Field("|", min_length=1, description="Between the categories of an item.")


class UserColumns(Section):
    """Which column of the user table means what."""

    user: Column = Field(description="The key, as in the log.")


class UserSource(TableSource):
    """A table of users."""

    columns: UserColumns


class Clean(Section):
    """What happens to rows before they enter the log."""

    max_bad_rows: float = Field(0.05, ge=0, le=1, description="Fail when a larger share of rows is unusable.")
    deduplicate: bool = Field(True, description="Keep one of equal (user, item, timestamp, type).")


class View(Section):
    """Which events of the log a model sees."""

    event_types: tuple[str, ...] = Field((), description="Only these types; by default all.")
    min_user_events: int = Field(3, ge=1, description="Drop users with fewer events (k-core, to a fixed point).")
    min_item_events: int = Field(1, ge=1, description="Drop items with fewer events (k-core, to a fixed point).")


class Split(Section):
    """How events are set aside for validation and test."""

    kind: Literal["leave-one-out", "time"] = Field(
        "leave-one-out",
        description="Each user's last event is test and the one before validation; or by two points in time for all.",
    )
    validation: ShareOrMoment = Field(
        0.1, description="For `time`: the share of events, or where it starts (ISO 8601 date or time)."
    )
    test: ShareOrMoment = Field(0.1, description="For `time`: the share of events, or where it starts.")

    @model_validator(mode="after")
    def _shares_leave_something(self) -> Split:
        shares = [value for value in (self.validation, self.test) if isinstance(value, float)]
        if any(not 0 < share < 1 for share in shares) or sum(shares) >= 1:
            raise ValueError("validation and test are shares between 0 and 1 that leave something to train on")
        if isinstance(self.validation, str) != isinstance(self.test, str):
            raise ValueError("validation and test are both shares or both points in time")
        return self


class Data(Section):
    """From raw logs to a Dataset."""

    sources: tuple[EventSource, ...] = Field(min_length=1, description="The logs.")
    items: ItemSource | None = Field(None, description="Titles, categories and other columns of items.")
    users: UserSource | None = Field(None, description="Columns of users.")
    clean: Clean = Clean()
    view: View = View()
    split: Split = Split()


@dataclasses.dataclass(frozen=True)
class ModelChoice:
    """A model's name and the config of its architecture."""

    name: str
    config: Any


@pydantic.dataclasses.dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Training(Optimization):
    """How the model is trained: the loop's settings, and where it runs.

    Attributes:
        workers: Training processes; 0 trains in the calling process, without start-up and without restarts.
        gpus: Whether workers get a GPU each; ``auto`` gives them one where the cluster has enough.
        threads: Threads a worker; by default its share of the machine's cores. The last digits of results depend on it.
    """

    workers: Annotated[int, Field(ge=0)] = 1
    gpus: Annotated[Literal["auto", "yes", "no"], BeforeValidator(_yes_or_no)] = "auto"
    threads: Annotated[int, Field(ge=1)] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        parse_metric(self.metric)


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

    @field_validator("metrics")
    @classmethod
    def _known(cls, metrics: tuple[str, ...]) -> tuple[str, ...]:
        for metric in metrics:
            parse_metric(f"{metric}@1")
        return metrics


class Serving(Section):
    """The HTTP endpoint."""

    host: str = Field("127.0.0.1", description="Address to listen on. There are no API keys yet: keep it local.")
    port: int = Field(8000, ge=1, le=65535, description="Port to listen on.")
    exclude_seen: bool = Field(True, description="Do not recommend what the user already had.")
    min_replicas: int = Field(1, ge=1, description="Replicas when idle.")
    max_replicas: int = Field(4, ge=1, description="Replicas under load.")
    target_ongoing_requests: float = Field(
        16, gt=0, description="Requests in flight a replica that autoscaling aims at."
    )
    max_queued_requests: int = Field(256, ge=1, description="Requests that wait in a replica; beyond, 429.")
    max_batch_size: int = Field(64, ge=1, description="Most requests scored in one pass.")
    replica_cpus: float = Field(0.5, gt=0, description="CPUs reserved a replica.")

    @model_validator(mode="after")
    def _replicas_in_order(self) -> Serving:
        if self.min_replicas > self.max_replicas:
            raise ValueError(f"min_replicas ({self.min_replicas}) must not exceed max_replicas ({self.max_replicas})")
        return self


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

    @field_serializer("model")
    def _model_section(self, choice: ModelChoice) -> Json:
        return {"name": choice.name, **dataclasses.asdict(choice.config)}

    def sections(self, *names: str) -> Json:
        """The named sections as JSON: what a stage that reads only these depends on."""
        return self.model_dump(mode="json", include=set(names))

    @property
    def metric_names(self) -> tuple[str, ...]:
        """The metrics to compute, such as ``ndcg@10``, the validation metric included."""
        names = [f"{metric}@{k}" for k in sorted(set(self.evaluation.ks)) for metric in self.evaluation.metrics]
        return tuple(dict.fromkeys([*names, self.training.metric]))
