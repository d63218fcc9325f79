"""What a check of configuration has to find: any key, at any depth, with a letter too many."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

NAMED_BY_USERS = {"data", "labels", "limits", "matchLabels", "rayStartParams", "requests"}
"""Mappings whose keys are names that somebody chose, which no schema knows."""


def misspelt(document: Any) -> Iterator[tuple[str, Any]]:
    """For each key of a document, where it is, and the document with that key misspelt."""
    for path, key in _keys(document):
        changed = copy.deepcopy(document)
        place = changed
        for step in path:
            place = place[step]
        place[f"{key}x"] = place.pop(key)
        yield ".".join(map(str, (*path, key))), changed


def _keys(node: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], str]]:
    if isinstance(node, dict):
        if not path or path[-1] not in NAMED_BY_USERS:
            yield from ((path, key) for key in node)
        for key, value in node.items():
            yield from _keys(value, (*path, key))
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from _keys(value, (*path, index))
