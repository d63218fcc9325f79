"""The OpenAPI document: what FastAPI says of the routes, and what it has no words for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI

from rayrec.serving.engine import Engine
from rayrec.serving.envelope import Backend
from rayrec.serving.features import FIRST, LAST, MOMENT
from rayrec.serving.schemas import TEXT

METHODS = frozenset({"get", "put", "post", "delete", "patch"})
A_MOMENT = {
    "anyOf": [
        {"type": "string", "format": "date-time"},
        {"type": "number", "minimum": FIRST, "exclusiveMaximum": LAST},
        {"type": "null"},
    ]
}


def add_document(app: FastAPI, backend: Backend) -> None:
    """Have the document say which columns the live model reads; it is made again when another is live."""
    make, described = app.openapi, [""]

    def document() -> dict[str, Any]:
        engine = backend.engine
        release = engine.release.digest if engine else ""
        if app.openapi_schema is None or described[0] != release:
            app.openapi_schema = None
            _describe(make(), engine)
            described[0] = release
        return make()

    app.openapi = document  # type: ignore[method-assign]


def _describe(document: dict[str, Any], engine: Engine | None) -> None:
    context = _columns(engine, "context", {MOMENT: {**A_MOMENT, "description": "The moment that is asked for."}})
    for operations in document["paths"].values():
        for operation in (found for method, found in operations.items() if method in METHODS):
            # What one route of a function has in its path, another takes as well as a list of that name.
            named = {(one["in"], one["name"]): one for one in reversed(operation.get("parameters", []))}
            operation["parameters"] = [*reversed(named.values())]
            for parameter in operation["parameters"]:
                if parameter["name"] == "context":
                    # An object in an address, which FastAPI takes for a text.
                    del parameter["schema"]
                    parameter["content"] = {"application/json": {"schema": context}}
                else:
                    _bound(parameter["schema"])
    session = document["components"]["schemas"]["Session"]["properties"]
    session["context"].update(context)
    session["user"].update(_columns(engine, "user", {}))


def _columns(engine: Engine | None, name: str, more: Mapping[str, Any]) -> dict[str, Any]:
    """An object of the columns that a model reads of the ``user`` or the ``context``."""
    read = engine.features.columns(name) if engine else {}
    columns = {column: {"description": wanted} for column, wanted in read.items()}
    return {"type": "object", "properties": {**columns, **more}, "additionalProperties": False}


def _bound(schema: dict[str, Any]) -> None:
    for one in (schema, schema.get("items", {}), *schema.get("anyOf", [])):
        if one.get("type") == "string" and "enum" not in one:
            one.setdefault("pattern", TEXT)
