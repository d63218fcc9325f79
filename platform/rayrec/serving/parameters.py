"""Parameters of routes that recommend."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from fastapi import Depends, Query

from rayrec.serving.queries import ANYTHING, Wanted
from rayrec.serving.schemas import MAX_COUNT, MAX_OFFSET

MAX_CONTEXT = 4096
MAX_NAMED, MAX_NAME = 20, 256
"""Of names in an address, which has room for 64 KB; bodies may have more and longer ones."""

Count = Annotated[int, Query(ge=1, le=MAX_COUNT, description="How many items.")]
Moment = Annotated[
    str,
    Query(max_length=MAX_CONTEXT, description="What the model reads of the moment: a JSON object, by column."),
]
Explain = Annotated[bool, Query(description="Say which items of the history speak most for each one.")]
Debugging = Annotated[bool, Query(alias="debug", description="Say how the answer came about.")]
Offset = Annotated[int, Query(ge=0, le=MAX_OFFSET, description="How many of the best to pass over.")]
Name = Annotated[str, Query(max_length=MAX_NAME)]
Categories = Annotated[
    list[Name],
    Query(
        max_length=MAX_NAMED,
        description="Only items of one of these categories; several by repeating.",
    ),
]
Hours = Annotated[int, Query(ge=1, le=24 * 366, description="How far back.")]
Exclude = Annotated[
    list[Name],
    Query(max_length=MAX_NAMED, description="Not these items; several by repeating."),
]


Labels = Annotated[
    list[Annotated[str, Query(pattern="^[^=\\u0000]*=[^\\u0000]*$", max_length=MAX_NAME)]],
    Query(
        alias="label",
        max_length=MAX_NAMED,
        description="Only items with this label, as NAME=VALUE; all of several by repeating.",
    ),
]


# A default, since of a factory pydantic reads the signature with every request, which costs as much as all else; and
# not a plain function, which FastAPI would call in a thread.
NO_NAMES: list[str] = []


def wanted_of(categories: Sequence[str], exclude: Sequence[str], labels: Sequence[str]) -> Wanted:
    """Which items may be recommended, as an address says it."""
    if not categories and not exclude and not labels:
        return ANYTHING
    parted = [label.partition("=") for label in labels]
    return Wanted(tuple(categories), tuple((name, value) for name, _, value in parted), tuple(exclude))


async def _wanted(categories: Categories = NO_NAMES, exclude: Exclude = NO_NAMES, labels: Labels = NO_NAMES) -> Wanted:
    return wanted_of(categories, exclude, labels)


Which = Annotated[Wanted, Depends(_wanted)]
