"""What the data tests share: a storage, logs from plain text, and passes without Ray."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rayrec.artifacts import Storage
from rayrec.recipe import Recipe
from rayrec.recipe_files import parse_recipe


def _run_here(work: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
    return [work(item) for item in items]


@pytest.fixture
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Passes run in this process."""
    run_passes_here(monkeypatch)


def run_passes_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same functions on the same items, in milliseconds."""
    for module in ("ingest", "vocabulary", "segments", "selection", "tables", "view_building"):
        monkeypatch.setattr(f"rayrec.data.{module}.run_pass", _run_here)
    for module in ("segments", "view_building"):
        monkeypatch.setattr(f"rayrec.data.{module}.share", lambda value: SimpleNamespace(value=value))


@pytest.fixture
def store(tmp_path: Path) -> Storage:
    return Storage.open(tmp_path / "store")


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    folder = tmp_path / "logs"
    folder.mkdir()
    return folder


@pytest.fixture
def make_recipe(logs: Path) -> Callable[..., Recipe]:
    """A recipe: ``source`` updates the source, ``data`` the other sections of data."""

    def make(path: str = "log.csv", source: dict[str, Any] | None = None, **data: Any) -> Recipe:
        columns = {"user": "user", "item": "item", "timestamp": "time"}
        sources = [{"path": path, "columns": columns} | (source or {})]
        return parse_recipe({"name": "test", "data": {"sources": sources} | data}, folder=logs)

    return make
