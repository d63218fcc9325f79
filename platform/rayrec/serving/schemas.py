"""What the endpoint takes and gives, as its OpenAPI document says it."""

from __future__ import annotations

import json
import uuid
from datetime import UTC, datetime
from itertools import pairwise
from typing import Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, JsonValue, model_validator

from rayrec.recipe_data import EventSource
from rayrec.serving.state import Event, Item, User

DEFAULT_TYPE: str = EventSource.model_fields["type"].default
MAX_COUNT = 1000
MAX_OFFSET = 10_000
MAX_SESSION = 1000
MAX_COLUMNS = 1000
MAX_NAMED = 1000
MAX_KEY = 1024
MAX_VALUE = 1e15
MAX_TEXT = 10_000
MAX_CATEGORIES = 1000
MAX_LABELS = 100_000
MAX_TOGETHER = 1000
FIRST, LAST = -(1 << 53), 1 << 53
"""Of timestamps: whole numbers that JavaScript has exactly."""
Time = Annotated[int, Field(ge=0, lt=1 << 40)]
Values = Annotated[
    dict[Annotated[str, Field(max_length=256)], JsonValue],
    Field(max_length=MAX_COLUMNS, description="By column, raw as in the log; what is left out or null is missing."),
]


def timestamp_of(given: object) -> object:
    """Milliseconds since the epoch of a number or of a text in ISO 8601, which without a zone is UTC."""
    if isinstance(given, bool) or not isinstance(given, str):
        return given
    try:
        at = datetime.fromisoformat(given)
    except ValueError as error:
        raise ValueError("must be ISO 8601, such as 2024-05-01T08:00:00Z, or milliseconds since the epoch") from error
    return round((at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() * 1000)


Said = Annotated[int, Field(ge=FIRST, le=LAST)] | Annotated[str, Field(json_schema_extra={"format": "date-time"})]
Moment = Annotated[
    int, BeforeValidator(timestamp_of, json_schema_input_type=Said), Field(ge=FIRST, le=LAST, strict=True)
]


def _text(text: str) -> str:
    if "\0" in text or not _is_text(text):
        raise ValueError("must be text in Unicode without U+0000, which databases cannot keep")
    return text


def _is_text(text: str) -> bool:
    """Whether it has no half of a surrogate pair, which JSON can name and nothing can keep."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _short(text: str) -> str:
    if len(text.encode()) > MAX_KEY:
        raise ValueError(f"must not be longer than {MAX_KEY:,} bytes in UTF-8")
    return text


def _labels(given: JsonValue) -> JsonValue:
    written = json.dumps(given, ensure_ascii=False, allow_nan=False)
    if len(written) > MAX_LABELS:
        raise ValueError(f"must not be longer than {MAX_LABELS:,} characters as JSON")
    if "\\u0000" in written or not _is_text(written):
        raise ValueError("must be text in Unicode without U+0000, which databases cannot keep")
    return given


Text = Annotated[str, AfterValidator(_text)]
Key = Annotated[Text, AfterValidator(_short), Field(min_length=1, max_length=MAX_KEY)]
Value = Annotated[float, Field(ge=-MAX_VALUE, le=MAX_VALUE, allow_inf_nan=False)]
Labels = Annotated[dict[str, JsonValue] | list[JsonValue] | None, AfterValidator(_labels)]


class ItemView(BaseModel):
    """An item of the catalogue."""

    item: str = Field(description="The item's key.")
    title: str | None = Field(description="What people call it, where known.")
    categories: list[str] = Field(description="Its categories; empty where unknown.")


class Because(BaseModel):
    """An item of a history that speaks for another."""

    item: str
    similarity: float = Field(description="The cosine of their vectors.")


class RecommendedItem(ItemView):
    """An item of an answer."""

    score: float = Field(description="Higher is better; comparable within one answer only.")
    because: list[Because] | None = Field(None, description="With `explain`: empty of models without item vectors.")


class Envelope(BaseModel):
    """In every answer."""

    request_id: str = Field(description="Identifies the request, also in the header X-Request-ID.")
    release: str = Field(description="The digest of the Release that answered.")
    simulated: bool = Field(description="Whether the Release was made from simulated data.")


class Recommendations(Envelope):
    """Recommended items, best first."""

    source: str = Field(
        description="`model`; `popular` when nothing is known to recommend from; `latest` or `trending` when asked for."
    )
    items: list[RecommendedItem]


class UserRecommendations(Recommendations):
    """Recommended items for a user."""

    user: str
    known: bool = Field(description="Whether the user has been seen before.")
    degraded: bool = Field(description="The database did not answer: nothing that the user did was counted.")


class SimilarItems(Recommendations):
    """Items like another."""

    item: str


class Basket(BaseModel):
    """What is in a cart."""

    model_config = ConfigDict(extra="forbid", strict=True)

    items: list[Key] = Field(min_length=1, max_length=MAX_SESSION)
    n: int = Field(10, ge=1, le=MAX_COUNT, description="How many items to recommend.")


class Rank(BaseModel):
    """Candidates of the client's own, and for whom to rank them."""

    model_config = ConfigDict(extra="forbid", strict=True)

    candidates: list[Key] = Field(min_length=1, max_length=MAX_COUNT, description="Keys of the items to rank.")
    user: Key | None = Field(None, description="For this user; or for a session of `items`.")
    items: list[Key] = Field([], max_length=MAX_SESSION, description="What the session has seen, oldest first.")


class Ranking(Recommendations):
    """Ranked candidates, best first."""

    unranked: list[str] = Field(description="Candidates that the model does not know, or that are hidden.")
    degraded: bool = Field(description="The database did not answer: nothing that the user did was counted.")


class SimilarUser(BaseModel):
    """A user like another."""

    user: str
    score: float = Field(description="The share of the other's latest items that this one had.")


class SimilarUsers(Envelope):
    """Users like another, most alike first."""

    user: str
    users: list[SimilarUser]


class Session(BaseModel):
    """What happened in a session."""

    model_config = ConfigDict(extra="forbid", strict=True)

    items: list[str] = Field(max_length=MAX_SESSION, description="Keys of the items, oldest first.")
    times: list[Time] | None = Field(
        None,
        max_length=MAX_SESSION,
        description="When each item was, in whole seconds since the epoch, never backwards; by default all at the "
        "moment asked for. Models that read no times pass them over.",
    )
    user: Values = Field({}, description="Columns of the user table that the model reads (`data.features.users`).")
    context: Values = Field(
        {},
        description="Columns of the log that the model reads of the moment (`data.features.context`); `timestamp`, for "
        "every model, is the moment that is asked for: ISO 8601, or seconds or milliseconds since the epoch.",
    )
    categories: list[Key] = Field([], max_length=MAX_NAMED, description="Only items of one of these.")
    exclude: list[Key] = Field([], max_length=MAX_NAMED, description="Not these items.")
    n: int = Field(10, ge=1, le=MAX_COUNT, description="How many items to recommend.")
    offset: int = Field(0, ge=0, le=MAX_OFFSET, description="How many of the best to pass over.")

    @model_validator(mode="after")
    def _a_time_each(self) -> Session:
        if self.times is not None and len(self.times) != len(self.items):
            raise ValueError(f"times ({len(self.times)}) must be as many as items ({len(self.items)})")
        backwards = [n for n, (before, after) in enumerate(pairwise(self.times or []), 1) if after < before]
        if backwards:
            raise ValueError(f"times[{backwards[0]}] is before times[{backwards[0] - 1}]: the oldest item comes first")
        return self


class EventIn(BaseModel):
    """Something a user did with an item."""

    model_config = ConfigDict(extra="forbid", strict=True)

    event_id: Key | None = Field(None, description="One that comes twice is kept once. By default a new one.")
    user: Key
    item: Key
    type: Annotated[Text, Field(max_length=MAX_KEY)] = Field(
        DEFAULT_TYPE, description="Such as `view`; by default what events of logs without types have."
    )
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


class ErrorDetail(BaseModel):
    """What went wrong."""

    status: int
    message: str


class ErrorAnswer(BaseModel):
    """The body of every answer with a status of 400 or more."""

    request_id: str
    error: ErrorDetail


class Health(BaseModel):
    """How the replica is."""

    status: str
    release: str | None = None
    refused: str | None = Field(None, description="Why the Release asked for last is not the one that is live.")
