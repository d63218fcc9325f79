"""What the endpoint takes and gives, as its OpenAPI document says it."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator

MAX_COUNT = 1000
MAX_OFFSET = 10_000
MAX_SESSION = 1000
MAX_COLUMNS = 1000
Time = Annotated[int, Field(ge=0, lt=1 << 40)]
Values = Annotated[
    dict[Annotated[str, Field(max_length=256)], JsonValue],
    Field(max_length=MAX_COLUMNS, description="By column, raw as in the log; what is left out or null is missing."),
]


class ItemView(BaseModel):
    """An item of the catalogue."""

    item: str = Field(description="The item's key.")
    title: str | None = Field(description="What people call it, where known.")
    categories: list[str] = Field(description="Its categories; empty where unknown.")


class RecommendedItem(ItemView):
    """An item of an answer."""

    score: float = Field(description="Higher is better; comparable within one answer only.")


class Envelope(BaseModel):
    """In every answer."""

    request_id: str = Field(description="Identifies the request, also in the header X-Request-ID.")
    release: str = Field(description="The digest of the Release that answered.")
    simulated: bool = Field(description="Whether the Release was made from simulated data.")


class Recommendations(Envelope):
    """Recommended items, best first."""

    source: str = Field(description="`model`, or `popular` when nothing is known to recommend from.")
    items: list[RecommendedItem]


class UserRecommendations(Recommendations):
    """Recommended items for a user."""

    user: str
    known: bool = Field(description="Whether the user has been seen before.")


class ItemAnswer(Envelope, ItemView):
    """An item."""


class SimilarItems(Recommendations):
    """Items like another."""

    item: str


class Session(BaseModel):
    """What happened in a session."""

    model_config = ConfigDict(extra="forbid")

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
