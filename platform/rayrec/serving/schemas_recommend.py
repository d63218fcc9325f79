"""What is asked for recommendations, and what is answered."""

from __future__ import annotations

from itertools import pairwise

from pydantic import BaseModel, ConfigDict, Field, model_validator

from rayrec.serving.schemas import (
    MAX_COUNT,
    MAX_NAMED,
    MAX_SESSION,
    Count,
    Envelope,
    ItemView,
    Key,
    Offset,
    Time,
    Values,
)


class Because(BaseModel):
    """An item of a history that speaks for another."""

    item: str
    similarity: float = Field(description="The cosine of their vectors.")


class PathTaken(BaseModel):
    """How an item came to its place."""

    by: str = Field(description="`order`; `chance`, by exploration; `cold`, in a place for what no model knows yet.")
    sources: dict[str, int] | None = Field(None, description="Where it was found, with its place there, from 1.")


class RecommendedItem(ItemView):
    """An item of an answer."""

    score: float = Field(description="The model's: comparable within one answer; 0 of what the model does not know.")
    path: PathTaken | None = Field(None, description="With `debug`, where the recipe has a funnel.")
    because: list[Because] | None = Field(None, description="With `explain`: empty of models without item vectors.")


class Recommendations(Envelope):
    """Recommended items, best first."""

    source: str = Field(
        description="`model`; `popular` when nothing is known to recommend from; `latest` or `trending` when asked for."
    )
    degraded: bool = Field(
        description="What the user did could not be read, or the model not be asked in time: popular items instead."
    )
    items: list[RecommendedItem]


class Past(BaseModel):
    """What is known of somebody's past."""

    events: int = Field(description="How many the model was asked with.")
    latest: list[str] = Field(description="Keys of their items, the newest first.")


class LeftOut(BaseModel):
    """How many items of the model were left out, and why."""

    had: int = Field(description="The user had them.")
    not_offered: int = Field(description="They are hidden, or not in the catalogue.")
    outside: int = Field(description="They are of other categories or labels than those asked for.")
    excluded: int = Field(description="The request excluded them.")


class Debug(BaseModel):
    """How an answer came about."""

    model: str = Field(description="The kind of model that answered.")
    history: Past
    left_out: LeftOut
    milliseconds: dict[str, float] = Field(description="`ask`: the history was read; `answer`: waited and scored.")


class UserRecommendations(Recommendations):
    """Recommended items for a user."""

    user: str
    known: bool = Field(description="Whether the user has been seen before.")
    debug: Debug | None = Field(None, description="With `debug`.")


class SimilarItems(Recommendations):
    """Items like another."""

    item: str


class Basket(BaseModel):
    """What is in a cart."""

    model_config = ConfigDict(extra="forbid", strict=True)

    items: list[Key] = Field(min_length=1, max_length=MAX_SESSION)
    n: Count = Field(10, description="How many items to recommend.")


class Rank(BaseModel):
    """Candidates of the client's own, and for whom to rank them."""

    model_config = ConfigDict(extra="forbid", strict=True)

    candidates: list[Key] = Field(min_length=1, max_length=MAX_COUNT, description="Keys of the items to rank.")
    user: Key | None = Field(None, description="For this user; or for a session of `items`.")
    items: list[Key] = Field([], max_length=MAX_SESSION, description="What the session has seen, oldest first.")


class Ranking(Recommendations):
    """Ranked candidates, best first."""

    unranked: list[str] = Field(description="Candidates that the model does not know, or that are hidden.")


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
    n: Count = Field(10, description="How many items to recommend.")
    offset: Offset = Field(0, description="How many of the best to pass over.")

    @model_validator(mode="after")
    def _a_time_each(self) -> Session:
        if self.times is not None and len(self.times) != len(self.items):
            raise ValueError(f"times ({len(self.times)}) must be as many as items ({len(self.items)})")
        backwards = [n for n, (before, after) in enumerate(pairwise(self.times or []), 1) if after < before]
        if backwards:
            raise ValueError(f"times[{backwards[0]}] is before times[{backwards[0] - 1}]: the oldest item comes first")
        return self
