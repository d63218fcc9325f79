"""Folders that say what the rows below them have in common: ``day=2025-01-01/country=DE/part.parquet``."""

from __future__ import annotations

import glob
from itertools import takewhile
from urllib.parse import unquote

import fsspec
import pyarrow as pa

from rayrec.data.blocks import Block

NOTHING = "__HIVE_DEFAULT_PARTITION__"


def path_keys(uri: str, path: str) -> dict[str, str | None]:
    """The keys in a file's path below its source's own path, with their values; None where there is none.

    Args:
        uri: The file.
        path: The source: a folder, or a glob, whose own part ends before the first folder with a wildcard.
    """
    if "=" not in uri or path.startswith("rayrec://"):
        return {}
    file, root = (fsspec.core.url_to_fs(place)[1] for place in (uri, path))
    if not file.startswith(root.rstrip("/") + "/"):
        root = "/".join(takewhile(lambda part: not glob.has_magic(part), root.split("/")))
    below = file.removeprefix(root.rstrip("/") + "/")
    if below == file:
        return {}
    pairs = [folder.split("=", 1) for folder in below.split("/")[:-1] if "=" in folder]
    return {unquote(key): None if value == NOTHING else unquote(value) for key, value in pairs}


def with_keys(block: Block, keys: dict[str, str | None]) -> Block:
    """A block with a text column for each key that its rows do not have themselves."""
    has = block.table.column_names if block.columns is None else block.columns
    added = {key: value for key, value in keys.items() if key not in has}
    columns = {name: block.table[name] for name in block.table.column_names if name not in added}
    columns |= {key: pa.repeat(pa.scalar(value, pa.string()), len(block.rows)) for key, value in added.items()}
    names = None if block.columns is None else (*block.columns, *added)
    return Block(pa.table(columns), block.rows, block.bad, names)
