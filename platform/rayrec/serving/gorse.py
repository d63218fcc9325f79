"""What Gorse's clients send and expect: names in PascalCase, times as text, and its statuses."""

from __future__ import annotations

import re
import uuid
from datetime import UTC, datetime
from typing import Annotated, Any, Literal
from urllib.parse import quote, unquote

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, JsonValue

from rayrec.serving.queries import Answer
from rayrec.serving.schemas import MAX_CATEGORIES, MAX_TEXT, Key, Moment, Said, Text
from rayrec.serving.schemas import Labels as AnyLabels
from rayrec.serving.schemas import Value as AnyValue
from rayrec.serving.state import Event, Item, User
from rayrec.serving.store.events import Feedback, FeedbackKey

DELAY = "^([0-9]{1,9}h)?([0-9]{1,9}m)?([0-9]{1,9}s)?$"
LONGEST = 10**6
NEVER = "0001-01-01T00:00:00Z"
"""What Go writes for no time."""

Time = Annotated[
    Moment | None,
    BeforeValidator(
        lambda given: None if given in ("", NEVER) else given, json_schema_input_type=Said | Literal[""] | None
    ),
]
Note = Annotated[Text, Field(max_length=MAX_TEXT)]


class _Gorse(BaseModel):
    # Gorse passes over what it does not know.
    model_config = ConfigDict(extra="ignore", strict=True)


class FeedbackIn(_Gorse):
    """What a user did with an item."""

    FeedbackType: Key
    UserId: Key
    ItemId: Key
    Timestamp: Time = None
    Value: AnyValue = 0
    Comment: Note | None = None

    def event(self, now: int, replaces: bool) -> Event:
        """As it is kept."""
        at = now if self.Timestamp is None else self.Timestamp
        told = (uuid.uuid4().hex, self.UserId, self.ItemId, self.FeedbackType, at, self.Value)
        return Event(*told, comment=self.Comment or "", replaces=replaces)


class ItemIn(_Gorse):
    """An item."""

    ItemId: Key
    IsHidden: bool = False
    Categories: Annotated[list[Key], Field(max_length=MAX_CATEGORIES)] | None = None
    Timestamp: Time = None
    Labels: AnyLabels = None
    Comment: Note | None = None

    def stored(self) -> Item:
        """As it is kept."""
        categories = tuple(self.Categories or ())
        return Item(self.ItemId, None, categories, self.Labels, self.Timestamp, self.IsHidden, self.Comment or "")


class ItemPatch(_Gorse):
    """What is to change in an item; null and what is left out stay."""

    IsHidden: bool | None = None
    Categories: Annotated[list[Key], Field(max_length=MAX_CATEGORIES)] | None = None
    Timestamp: Time = None
    Labels: AnyLabels = None
    Comment: Note | None = None

    def changes(self) -> dict[str, Any]:
        """By attribute of `Item`."""
        names = {"IsHidden": "hidden"}
        return {names.get(name, name.lower()): given for name, given in self.model_dump().items() if given is not None}


class UserIn(_Gorse):
    """A user."""

    UserId: Key
    Labels: AnyLabels = None
    Comment: Note | None = None


class UserPatch(_Gorse):
    """What is to change of a user; null and what is left out stay."""

    Labels: AnyLabels = None
    Comment: Note | None = None


class Affected(BaseModel):
    """How much was written."""

    RowAffected: int


class Score(BaseModel):
    """An item, or a user, of an answer."""

    Id: str
    Score: float


class SessionIn(_Gorse):
    """What somebody did who has no account."""

    ItemId: Key
    Timestamp: Time = None


def scores(answer: Answer) -> list[dict[str, Any]]:
    """Items with their scores."""
    return [{"Id": scored.item.item, "Score": scored.score} for scored in answer.items]


def time_of(milliseconds: int | None) -> str:
    """A time as Go writes it."""
    if milliseconds is None:
        return NEVER
    try:
        return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat().replace("+00:00", "Z")
    except (OverflowError, ValueError, OSError):
        return NEVER


def feedback(told: Feedback) -> dict[str, JsonValue]:
    """What a user did with an item."""
    at = time_of(told.timestamp)
    named: dict[str, JsonValue] = {"FeedbackType": told.type, "UserId": told.user, "ItemId": told.item}
    return {**named, "Value": told.value, "Timestamp": at, "Updated": at, "Comment": told.comment}


def item_view(item: Item) -> dict[str, JsonValue]:
    """An item."""
    return {
        "ItemId": item.item,
        "IsHidden": item.hidden,
        "Categories": list(item.categories),
        "Timestamp": time_of(item.timestamp),
        "Labels": item.labels,
        "Comment": item.comment,
    }


def user_view(user: User) -> dict[str, JsonValue]:
    """A user."""
    return {"UserId": user.user, "Labels": user.labels, "Comment": user.comment}


def cursor_of(key: FeedbackKey) -> str:
    """Where a page ends."""
    return "/".join(quote(part, safe="") for part in key)


def after(cursor: str) -> FeedbackKey | None:
    """The key that a cursor stands for. Any text is a place among the keys."""
    user, item, kind, *_ = [*(unquote(part).replace("\0", "") for part in cursor.split("/")), "", ""]
    return (user, item, kind) if cursor else None


def seconds(delay: str) -> int:
    """Seconds of a duration such as 1h30m, of the pattern `DELAY`."""
    units = {"h": 3600, "m": 60, "s": 1}
    return sum(min(int(number), LONGEST) * units[unit] for number, unit in re.findall("([0-9]+)([hms])", delay))
