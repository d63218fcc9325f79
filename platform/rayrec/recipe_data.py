"""The recipe's `data` section: from raw logs to what a model sees."""

from __future__ import annotations

import datetime
import math
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from rayrec.features.categorical import Categorical
from rayrec.features.multi_valued import MultiValued
from rayrec.features.numeric import Numeric
from rayrec.features.text import Text
from rayrec.features.timestamp import Timestamp
from rayrec.features.vector import Vector

Column = Annotated[str | int, Field(description="A column's name, or its position from 0 where there is no header.")]


def _iso(value: object) -> object:
    """YAML reads a bare ``2025-03-31`` as a date."""
    return value.isoformat() if isinstance(value, datetime.date) else value


Moment = Annotated[str, BeforeValidator(_iso)]
ShareOrMoment = Annotated[float | str, BeforeValidator(_iso)]


class Section(BaseModel):
    """Base of all sections: unknown keys are refused, and nothing changes after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True)


# ---- sources


class EventColumns(Section):
    """Which column of the log means what."""

    user: Column = Field(description="Who.")
    item: Column = Field(description="What.")
    timestamp: Column | None = Field(None, description="When; without it, the file's order is time.")
    type: Column | None = Field(None, description="Kind of event, such as view or purchase.")
    value: Column | None = Field(None, description="A number with the event, such as a rating.")


class TableSource(Section):
    """Files with the same columns, or the rows of a database."""

    path: str = Field(
        description="A file, folder or glob, local or any URI; `rayrec://NAME/FILE` for a data set rayrec can fetch; "
        "or a database by its SQLAlchemy URL. `${NAME}` in it is read from the environment, and kept out of logs."
    )
    format: Literal["auto", "csv", "jsonl", "parquet", "orc", "arrow", "sql"] = Field(
        "auto", description="By default from the file's name, or the URL's scheme."
    )
    separator: str = Field("auto", description="Of CSV columns; any text. By default found from the first lines.")
    header: bool = Field(True, description="Whether the first line of a CSV file names the columns.")
    encoding: str = Field("utf-8", description="Of text files.")
    table: str | None = Field(None, description="Of a database: the table to read whole.")
    query: str | None = Field(None, description="Of a database: the SELECT whose rows are read, instead of a table.")


class EventSource(TableSource):
    """A log of events."""

    columns: EventColumns
    type: str = Field("event", description="Type of events that have no type column.")
    time_unit: Literal["auto", "s", "ms", "us", "ns", "iso"] = Field(
        "auto",
        description="Of timestamps: epoch seconds, milli-, micro- or nanoseconds, ISO 8601; by default told apart by "
        "value.",
    )
    context: tuple[str, ...] = Field((), description="Further columns kept with each event.")
    fold: Literal["train", "validation", "test"] | None = Field(
        None, description="For `split.kind: given`: what its events are for."
    )


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


# ---- cleaning


def _deduplicate(value: object) -> object:
    """YAML reads a bare ``no`` as a truth value; ``yes`` means the first."""
    return {True: "first", False: "no"}[value] if isinstance(value, bool) else value


class Outliers(Section):
    """Where the values of a column are clipped."""

    method: Literal["quantile", "iqr"] = Field(
        description="At two quantiles, or at `factor` times the interquartile range outside of the quartiles."
    )
    low: float = Field(0.01, ge=0, lt=1, description="For `quantile`: the lower one.")
    high: float = Field(0.99, gt=0, le=1, description="For `quantile`: the upper one.")
    factor: float = Field(1.5, gt=0, description="For `iqr`.")

    @model_validator(mode="after")
    def _in_order(self) -> Outliers:
        if self.low >= self.high:
            raise ValueError(f"low ({self.low:g}) must be below high ({self.high:g})")
        return self


class Rate(Section):
    """More events in less time than a person makes."""

    events: int = Field(ge=1, description="So many are still allowed.")
    seconds: float = Field(gt=0, description="Within any stretch of this length.")


class Clean(Section):
    """What happens to rows.

    Rows that cannot be used, and equal events, do not enter the log. The rest is done to the view: the log keeps the
    events as they came, so that other settings need no other log.
    """

    max_bad_rows: float = Field(0.05, ge=0, le=1, description="Fail when a larger share of rows is unusable.")
    deduplicate: Annotated[Literal["first", "last", "no"], BeforeValidator(_deduplicate)] = Field(
        "first", description="Which of equal (user, item, timestamp, type) to keep; `no` keeps all."
    )
    repeat_seconds: float = Field(
        0, ge=0, description="Leave out an event that repeats the user's last one of its item and type so soon."
    )
    max_rate: Rate | None = Field(None, description="Leave out users who were faster, with all their events.")
    time_range: tuple[Moment | None, Moment | None] = Field(
        (None, None), description="Only events from the first moment on, and before the second (ISO 8601)."
    )
    min_value: float | None = Field(
        None, description="Leave out events with a lower value: with 4, only ratings from 4 on are positive."
    )
    missing: dict[str, Literal["drop", "mean", "median", "most_frequent"] | float | str] = Field(
        {}, description="What takes the place of a missing `value` or context column; a number or text is itself taken."
    )
    outliers: dict[str, Outliers] = Field({}, description="Clipping, of `value` or a context column that is a number.")
    weights: dict[str, Annotated[float, Field(gt=0)]] = Field(
        {}, description="Weight of an event by its type; 1 where it is not listed."
    )


# ---- features


# The configs stand beside the code that fits them; what they may hold is checked here, as part of `Features`.
Feature = Annotated[
    Categorical | MultiValued | Numeric | Timestamp | Text | Vector,
    Field(discriminator="kind", description="A column.", json_schema_extra={"required": ["kind"]}),
]


class Features(Section):
    """Columns that models may use, by name, and how each becomes numbers."""

    users: dict[str, Feature] = Field({}, description="Of the user table.")
    items: dict[str, Feature] = Field({}, description="Of the item table.")
    context: dict[str, Feature] = Field({}, description="Of the sources' `context` columns, and `timestamp`.")


# ---- views and splits


class View(Section):
    """Which events of the log a model sees."""

    event_types: tuple[str, ...] = Field((), description="Only these types; by default all.")
    min_user_events: int = Field(3, ge=1, description="Drop users with fewer events (k-core, to a fixed point).")
    min_item_events: int = Field(1, ge=1, description="Drop items with fewer events (k-core, to a fixed point).")
    fit: Literal["all", "train"] = Field(
        "all", description="What items, words and statistics come from: all events, or those of the training fold."
    )


class Split(Section):
    """How events are set aside for validation and test."""

    kind: Literal["leave-one-out", "leave-last-k", "time", "ratio", "k-fold", "given"] = Field(
        "leave-one-out",
        description="Each user's last event is test and the one before validation; the last `k` and the `k` before; "
        "by two points in time for all; by shares of each user's events; by chance into `k` folds; or as the sources "
        "say.",
    )
    validation: ShareOrMoment | None = Field(
        None,
        description="For `time` and `ratio`: the share of events (default .1); for `time` also where it starts (ISO "
        "8601) or how long it lasts (`7d`). For `given` without a validation source: a share of the training events, "
        "by default none.",
    )
    test: ShareOrMoment = Field(0.1, description="For `time` and `ratio`: the same.")
    k: int = Field(5, ge=1, description="For `leave-last-k`: events; for `k-fold`: folds.")
    fold: int = Field(0, ge=0, description="For `k-fold`: the one that is test; the next one is validation.")
    seed: int = Field(0, ge=0, description="For what is drawn by chance.")

    @model_validator(mode="after")
    def _shares_leave_something(self) -> Split:
        shares = [value for value in (self.validation_share, self.test) if isinstance(value, float)]
        low = -math.inf if self.kind == "given" else 0
        if any(not low < share < 1 for share in shares) or (self.kind != "given" and sum(shares) >= 1):
            raise ValueError("validation and test are shares between 0 and 1 that leave something to train on")
        if self.kind == "time" and isinstance(self.validation_share, str) != isinstance(self.test, str):
            raise ValueError("validation and test are both shares, or both points in time or durations")
        if self.kind == "ratio" and (isinstance(self.validation, str) or isinstance(self.test, str)):
            raise ValueError("for ratio, validation and test are shares between 0 and 1")
        if self.kind == "k-fold" and (self.k < 3 or self.fold >= self.k):
            raise ValueError(f"k-fold needs k of 3 or more and fold below k, not k = {self.k} and fold = {self.fold}")
        return self

    @property
    def validation_share(self) -> float | str:
        """`validation` with its default."""
        if self.validation is None:
            return 0.0 if self.kind == "given" else 0.1
        return self.validation


class Data(Section):
    """From raw logs to a Dataset."""

    sources: tuple[EventSource, ...] = Field(min_length=1, description="The logs.")
    items: ItemSource | None = Field(None, description="Titles, categories and other columns of items.")
    users: UserSource | None = Field(None, description="Columns of users.")
    clean: Clean = Clean()
    features: Features = Features()
    view: View = View()
    split: Split = Split()

    @model_validator(mode="after")
    def _columns_are_there(self) -> Data:
        context = {column for source in self.sources for column in source.context}
        for key, columns in (("missing", self.clean.missing), ("outliers", self.clean.outliers)):
            for column in columns:
                if column != "value" and column not in context:
                    raise ValueError(f"clean.{key}.{column}: neither `value` nor a `context` column of a source")
        for name, feature in self.features.context.items():
            if (feature.column or name) not in context | {"timestamp"}:
                raise ValueError(f"features.context.{name}: no source lists '{feature.column or name}' in `context`")
        for key, table in (("items", self.items), ("users", self.users)):
            if getattr(self.features, key) and table is None:
                raise ValueError(f"features.{key}: there is no `data.{key}` table to take them from")
        folds = {source.fold for source in self.sources}
        if self.split.kind == "given" and not ({"train", "test"} <= folds and None not in folds):
            raise ValueError("split.kind = given needs `fold: train`, `fold: test` on the sources, one for each")
        return self
