"""What the endpoint takes and gives, as its OpenAPI document says it: bounds, kinds of values, and what all have."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, JsonValue

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
TEXT = "^[^\\u0000]*$"
"""Of keys and titles: databases keep all characters but this one."""
BARE = "^[^\\s\\u0000\\u001c-\\u001f\\u0085]([^\\u0000]*[^\\s\\u0000\\u001c-\\u001f\\u0085])?$"
"""Of keys: logs are read without white space around them."""
FIRST, LAST = -(1 << 53), 1 << 53
"""Of timestamps: whole numbers that JavaScript has exactly."""
Values = Annotated[
    dict[Annotated[str, Field(max_length=256)], JsonValue],
    Field(max_length=MAX_COLUMNS, description="By column, raw as in the log; what is left out or null is missing."),
]


def timestamp_of(given: object) -> object:
    """Milliseconds since the epoch of a number or of a text in ISO 8601, which without a zone is UTC."""
    if isinstance(given, bool) or not isinstance(given, str):
        return whole(given)
    try:
        at = datetime.fromisoformat(given)
    except ValueError as error:
        raise ValueError("must be ISO 8601, such as 2024-05-01T08:00:00Z, or milliseconds since the epoch") from error
    return round((at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() * 1000)


def whole(given: object) -> object:
    """The integer that a number is: JSON knows one kind of numbers, so 7.0 is one."""
    return int(given) if isinstance(given, float) and given.is_integer() else given


Time = Annotated[int, Field(ge=0, lt=1 << 40), BeforeValidator(whole)]
Count = Annotated[int, Field(ge=1, le=MAX_COUNT), BeforeValidator(whole)]
Offset = Annotated[int, Field(ge=0, le=MAX_OFFSET), BeforeValidator(whole)]
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


def _bare(text: str) -> str:
    if text != text.strip():
        raise ValueError("must not begin or end with white space: logs are read without")
    return text


def _short(text: str) -> str:
    if len(text.encode()) > MAX_KEY:
        raise ValueError(f"must not be longer than {MAX_KEY:,} bytes in UTF-8")
    return text


def _labels(given: JsonValue) -> JsonValue:
    written = json.dumps(given, ensure_ascii=False, allow_nan=False)
    if len(written) > MAX_LABELS:
        raise ValueError(f"must not be longer than {MAX_LABELS:,} characters as JSON")
    if not _is_text(written):
        raise ValueError("must be text in Unicode")
    return given


Text = Annotated[str, AfterValidator(_text), Field(json_schema_extra={"pattern": TEXT})]
Kind = Annotated[
    str,
    AfterValidator(_text),
    AfterValidator(_bare),
    Field(max_length=MAX_KEY, json_schema_extra={"pattern": f"^$|{BARE}"}),
]
Key = Annotated[
    str,
    AfterValidator(_text),
    AfterValidator(_bare),
    AfterValidator(_short),
    Field(min_length=1, max_length=MAX_KEY, json_schema_extra={"pattern": BARE}),
]
Value = Annotated[float, Field(ge=-MAX_VALUE, le=MAX_VALUE, allow_inf_nan=False)]
Labels = Annotated[dict[str, JsonValue] | list[JsonValue] | None, AfterValidator(_labels)]


class ItemView(BaseModel):
    """An item of the catalogue."""

    item: str = Field(description="The item's key.")
    title: str | None = Field(description="What people call it, where known.")
    categories: list[str] = Field(description="Its categories; empty where unknown.")


class Envelope(BaseModel):
    """In every answer."""

    request_id: str = Field(description="Identifies the request, also in the header X-Request-ID.")
    release: str = Field(description="The digest of the Release that answered.")
    simulated: bool = Field(description="Whether the Release was made from simulated data.")


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
