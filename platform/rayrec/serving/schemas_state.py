"""Events, items and users, as they are told of and shown."""

from __future__ import annotations

import uuid
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from rayrec.recipe_data import EventSource
from rayrec.serving.schemas import (
    MAX_CATEGORIES,
    MAX_TEXT,
    Envelope,
    ItemView,
    Key,
    Kind,
    Labels,
    Moment,
    Text,
    Value,
)
from rayrec.serving.state import Event, Item, User

DEFAULT_TYPE: str = EventSource.model_fields["type"].default


class EventIn(BaseModel):
    """Something a user did with an item."""

    model_config = ConfigDict(extra="forbid", strict=True)

    event_id: Key | None = Field(None, description="One that comes twice is kept once. By default a new one.")
    user: Key
    item: Key
    type: Kind = Field(DEFAULT_TYPE, description="Such as `view`; by default what events of logs without types have.")
    timestamp: Moment | None = Field(None, description="ISO 8601, or milliseconds since the epoch; by default now.")
    value: Value | None = Field(None, description="Such as a rating.")
    context: Labels = Field(None, description="What else was known of the moment, by column of the log.")
    comment: Annotated[Text, Field(max_length=MAX_TEXT)] = ""
    replaces: bool = Field(
        False, description="It takes the place of the user's events of this type on this item, in Gorse's feedback."
    )

    def event(self, now: int) -> Event:
        """As it is kept."""
        given = self.model_dump()
        at = now if self.timestamp is None else self.timestamp
        return Event(**{**given, "event_id": self.event_id or uuid.uuid4().hex, "timestamp": at})


class EventView(BaseModel):
    """An event of the log."""

    event_id: str
    user: str
    item: str
    type: str
    timestamp: int = Field(description="Milliseconds since the epoch.")
    value: float | None
    context: JsonValue
    comment: str
    replaces: bool


class ItemIn(BaseModel):
    """An item of the catalogue."""

    model_config = ConfigDict(extra="forbid", strict=True)

    item: Key
    title: Annotated[Text, Field(max_length=MAX_TEXT)] | None = None
    categories: Annotated[list[Key], Field(max_length=MAX_CATEGORIES)] = []
    labels: Labels = Field(None, description="What else is known of it.")
    timestamp: Moment | None = Field(None, description="When it came: ISO 8601, or milliseconds since the epoch.")
    hidden: bool = Field(False, description="Keep it back: no answer recommends it.")
    comment: Annotated[Text, Field(max_length=MAX_TEXT)] = ""

    def stored(self) -> Item:
        """As it is kept."""
        given = self.model_dump()
        return Item(**{**given, "categories": tuple(self.categories)})


class ItemPatch(BaseModel):
    """What is to change in an item; what is left out stays."""

    model_config = ConfigDict(extra="forbid", strict=True)

    title: Annotated[Text, Field(max_length=MAX_TEXT)] | None = None
    categories: Annotated[list[Key], Field(max_length=MAX_CATEGORIES)] = []
    labels: Labels = None
    timestamp: Moment | None = None
    hidden: bool = False
    comment: Annotated[Text, Field(max_length=MAX_TEXT)] = ""


class StoredItem(ItemView):
    """An item with all that is known of it."""

    labels: JsonValue
    timestamp: int | None = Field(description="Milliseconds since the epoch.")
    hidden: bool
    comment: str


class UserIn(BaseModel):
    """What is told of a user."""

    model_config = ConfigDict(extra="forbid", strict=True)

    user: Key
    labels: Labels = Field(None, description="What is known of them.")
    comment: Annotated[Text, Field(max_length=MAX_TEXT)] = ""

    def stored(self) -> User:
        """As it is kept."""
        return User(**self.model_dump())


class UserPatch(BaseModel):
    """What is to change of a user; what is left out stays."""

    model_config = ConfigDict(extra="forbid", strict=True)

    labels: Labels = None
    comment: Annotated[Text, Field(max_length=MAX_TEXT)] = ""


class UserView(BaseModel):
    """A user."""

    user: str
    labels: JsonValue
    comment: str


class EventsKept(Envelope):
    """Events are on disk."""

    event_ids: list[str] = Field(description="Of the events, in the order given.")
    new: int = Field(description="How many were not there before.")


class Events(Envelope):
    """A page of the log."""

    events: list[EventView]
    cursor: str | None = Field(description="Gives the next page; null at the end.")


class ItemsPage(Envelope):
    """A page of the catalogue."""

    items: list[StoredItem]
    cursor: str | None = Field(description="Gives the next page; null at the end.")


class UsersPage(Envelope):
    """A page of the users."""

    users: list[UserView]
    cursor: str | None = Field(description="Gives the next page; null at the end.")


class ItemsFound(Envelope):
    """Items that a search found."""

    items: list[StoredItem]


class ItemAnswer(Envelope, StoredItem):
    """An item."""


class UserAnswer(Envelope, UserView):
    """A user."""


class Kept(Envelope):
    """It is on disk."""

    kept: int = Field(description="How many rows.")


class Imported(Envelope):
    """All rows are on disk."""

    rows: int = Field(description="How many there were.")
    new: int | None = Field(description="How many events were not there before; null of items and users.")


class Removed(Envelope):
    """It is gone."""

    removed: dict[str, int] = Field(description="How many rows, by table.")


class Erased(Removed):
    """A user is forgotten here, and is to be in the Datasets."""

    erasure_id: str = Field(description="Of the receipt, see `/v1/erasures/{erasure_id}`.")


class ErasureView(BaseModel):
    """The receipt of an erasure."""

    erasure_id: str
    state: Literal["queued", "done"] = Field(description="`queued` while a Dataset is still to be rewritten.")
    fingerprint: str = Field(description="Stands for the user; nobody can make it without this database.")
    actor: str = Field(description="Who asked.")
    asked: int = Field(description="When, in milliseconds since the epoch.")
    removed: dict[str, int] = Field(description="How many rows went at once, by table.")
    datasets: dict[str, JsonValue] = Field(
        description="By the name of each Dataset that was served: the receipt of its erasure, which says what is left "
        "elsewhere; null while it is to come."
    )


class ErasureAnswer(Envelope, ErasureView):
    """The receipt of an erasure."""


class Erasures(Envelope):
    """A page of receipts."""

    erasures: list[ErasureView]
    cursor: str | None = Field(description="Gives the next page; null at the end.")


class ImpressionView(BaseModel):
    """What was recommended in one answer."""

    request_id: str = Field(description="Of the request.")
    user: str | None = Field(description="Null of a session.")
    at: int = Field(description="Milliseconds since the epoch.")
    release: str = Field(description="The digest of the Release that answered.")
    source: str
    first: int = Field(description="The place of the first item, from 1.")
    items: list[str]
    scores: list[float]
    propensities: list[float] = Field(
        description="The chance that each item had to stand in its place; 1 where nothing was left to chance."
    )


class Impressions(Envelope):
    """A page of what was recommended."""

    impressions: list[ImpressionView]
    cursor: str | None = Field(description="Gives the next page; null at the end.")
