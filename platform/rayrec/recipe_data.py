"""The recipe's `data` section: from raw logs to what a model sees."""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from rayrec.features.categorical import Categorical
from rayrec.features.multi_valued import MultiValued
from rayrec.features.numeric import Numeric
from rayrec.features.text import Text
from rayrec.features.timestamp import Timestamp
from rayrec.features.vector import Vector

Column = Annotated[str | int, Field(description="A column's name, or its position from 0 where there is no header.")]


DURATION = re.compile(r"(\d{1,9})\s*([smhdw])")
SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
EPOCH = datetime.datetime.fromtimestamp(0, datetime.UTC)
LARGE_CATALOGUE = 100_000
"""Items from which on scores of all of them are more than a request should wait for (docs/serving.md)."""


def _iso(value: object) -> object:
    """YAML reads a bare ``2025-03-31`` as a date."""
    return value.isoformat() if isinstance(value, datetime.date) else value


def moment(text: str) -> float:
    """An ISO 8601 date or time as epoch milliseconds, UTC where it names no zone.

    Raises:
        ValueError: It is none.
    """
    try:
        parsed = datetime.datetime.fromisoformat(text.strip())
    except ValueError as error:
        message = f"'{text}' is no date or time. Write it as 2025-03-31 or 2025-03-31T12:00:00Z"
        raise ValueError(message) from error
    aware = parsed if parsed.tzinfo else parsed.replace(tzinfo=datetime.UTC)
    return (aware - EPOCH) / datetime.timedelta(milliseconds=1)


def duration(text: str) -> int | None:
    """A duration such as ``7d`` in milliseconds; None when it is none."""
    found = DURATION.fullmatch(text.strip())
    return int(found[1]) * SECONDS[found[2]] * 1000 if found else None


def _moment(text: str) -> str:
    moment(text)
    return text


Moment = Annotated[str, BeforeValidator(_iso), AfterValidator(_moment)]
ShareOrMoment = Annotated[float | str, BeforeValidator(_iso)]
Count = Annotated[int, Field(ge=1, lt=1 << 31)]


class Section(BaseModel):
    """Base of all sections: unknown keys are refused, and nothing changes after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


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

    @model_validator(mode="after")
    def _in_order(self) -> Clean:
        first, end = self.time_range
        if first is not None and end is not None and moment(first) >= moment(end):
            raise ValueError(f"time_range: it must begin ({first}) before it ends ({end})")
        filled = self.missing.get("value")
        if isinstance(filled, str) and filled not in {"drop", "mean", "median", "most_frequent"}:
            raise ValueError(f"missing.value = {filled!r}: give a number, drop, mean, median or most_frequent")
        return self


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
    min_user_events: Count = Field(3, description="Drop users with fewer events (k-core, to a fixed point).")
    min_item_events: Count = Field(1, description="Drop items with fewer events (k-core, to a fixed point).")
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
    k: Count = Field(5, description="For `leave-last-k`: events; for `k-fold`: folds.")
    fold: int = Field(0, ge=0, description="For `k-fold`: the one that is test; the next one is validation.")
    seed: int = Field(0, ge=0, lt=1 << 64, description="For what is drawn by chance.")

    @model_validator(mode="after")
    def _shares_leave_something(self) -> Split:
        if self.kind == "given":
            if not isinstance(self.validation_share, float) or not 0 <= self.validation_share < 1:
                raise ValueError("for given, validation is a share of the training events between 0 and 1")
            return self
        shares = [value for value in (self.validation_share, self.test) if isinstance(value, float)]
        if any(not 0 < share < 1 for share in shares) or sum(shares) >= 1:
            raise ValueError("validation and test are shares between 0 and 1 that leave something to train on")
        if self.kind == "ratio" and len(shares) < 2:
            raise ValueError("for ratio, validation and test are shares between 0 and 1")
        if self.kind == "k-fold" and (self.k < 3 or self.fold >= self.k):
            raise ValueError(f"k-fold needs k of 3 or more and fold below k, not k = {self.k} and fold = {self.fold}")
        return self

    @model_validator(mode="after")
    def _times_are_in_order(self) -> Split:
        texts = [value for value in (self.validation_share, self.test) if isinstance(value, str)]
        if self.kind != "time" or not texts:
            return self
        if len(texts) < 2 or len({duration(text) is None for text in texts}) > 1:
            raise ValueError("validation and test are both shares, both points in time, or both durations such as 7d")
        if duration(texts[0]) is None and moment(texts[0]) >= moment(texts[1]):
            raise ValueError(f"validation ({texts[0]}) must begin before test ({texts[1]})")
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
        self._check_mapped()
        folds = {source.fold for source in self.sources}
        if self.split.kind == "given" and not ({"train", "test"} <= folds and None not in folds):
            raise ValueError("split.kind = given needs `fold: train`, `fold: test` on the sources, one for each")
        return self

    def _check_mapped(self) -> None:
        clean, columns = self.clean, [source.columns for source in self.sources]
        timed: dict[str, object] = {"max_rate": clean.max_rate, "repeat_seconds": clean.repeat_seconds}
        timed |= {"time_range": any(clean.time_range)}
        if any(timed.values()) and any(column.timestamp is None for column in columns):
            raise ValueError(f"clean.{_first(timed)}: every source needs its `columns.timestamp`")
        valued = {"min_value": clean.min_value is not None, "missing.value": "value" in clean.missing}
        valued |= {"outliers.value": "value" in clean.outliers}
        if any(valued.values()) and all(column.value is None for column in columns):
            raise ValueError(f"clean.{_first(valued)}: no source has a `columns.value`")


def _first(asked: Mapping[str, object]) -> str:
    """The first key that is asked for."""
    return next(key for key, value in asked.items() if value)
