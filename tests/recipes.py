"""Small logs and recipes for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import yaml

USERS, ITEMS, EVENTS = 60, 30, 12


def write_log(folder: Path, seed: int = 0) -> Path:
    """A log in which item i is mostly followed by item i + 1: 60 users, 12 events each, with titles in `items.csv`."""
    rng = np.random.default_rng(seed)
    lines = ["user,item,time"]
    for user in range(USERS):
        start = int(rng.integers(ITEMS))
        for step in range(EVENTS):
            lines.append(f"u{user},i{(start + step) % ITEMS},{1_700_000_000 + user * 1000 + step * 60}")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "log.csv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    titles = [
        "item,title,genres",
        *(f"i{item},Title {item},{'even' if item % 2 == 0 else 'odd'}|all" for item in range(ITEMS)),
    ]
    (folder / "items.csv").write_text("\n".join(titles) + "\n", encoding="utf-8")
    return path


def recipe_values(log: Path | str, **sections: Any) -> dict[str, Any]:
    """A recipe for `write_log`'s log that trains in seconds, in the calling process."""
    values: dict[str, Any] = {
        "name": "tiny",
        "data": {
            "sources": [{"path": str(log), "columns": {"user": "user", "item": "item", "timestamp": "time"}}],
            "items": {
                "path": str(log).replace("log.csv", "items.csv"),
                "columns": {"item": "item", "title": "title", "categories": "genres"},
            },
        },
        "model": {"name": "sasrec", "dim": 16, "blocks": 1, "max_length": 10, "dropout": 0.0},
        "training": {"epochs": 3, "batch_size": 16, "learning_rate": 0.01, "workers": 0, "threads": 1},
    }
    return {**values, **sections}


def write_recipe(folder: Path, log: Path | str, **sections: Any) -> Path:
    """`recipe_values` as a YAML file."""
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe_values(log, **sections)), encoding="utf-8")
    return path
