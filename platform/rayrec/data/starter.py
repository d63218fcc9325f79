"""A commented recipe for the user's own files, from their header."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pyarrow.parquet as pq
import yaml

from rayrec.data.readers import file_format, header, read_blocks
from rayrec.errors import DataError
from rayrec.recipe_data import TableSource

# Names people give to these columns, in the languages we have met; compared without case, spaces and punctuation.
ALIASES = {
    "user": "user userid userkey username uid customer customerid customerno customernumber client visitor visitorid "
    "member account session sessionid reviewerid benutzer nutzer kunde kundennummer kundennr kundenid utilisateur "
    "usuario cliente utente",
    "item": "item itemid iid product productid movie movieid sku asin article articleid song track book content page "
    "artikel artikelnummer artikelnr artikelid produkt produktnummer produktid film produit articulo producto prodotto "
    "pelicula",
    "timestamp": "timestamp time ts datetime date eventtime createdat orderdate purchasedate unixreviewtime "
    "zeit zeitpunkt zeitstempel datum bestelldatum kaufdatum horodatage fecha hora data tempo",
    "type": "type event eventtype action behavior behaviour ereignis",
    "value": "rating value score stars overall weight price bewertung note puntuacion valutazione",
}


def starter_recipe(log: Path, items: Path | None = None, name: str | None = None, folder: Path = Path()) -> str:
    """YAML of a recipe for a log, with the columns guessed from its header and the choices explained.

    Args:
        log: The log: a file or folder.
        items: A table of items.
        name: Name of the recommender; by default made from the file's.
        folder: Where the recipe will be, from which its paths are taken.

    Raises:
        DataError: The file is missing or empty, or has fewer than two columns.
    """
    columns = _columns(log)
    if len(columns) < 2:
        raise DataError(f"{log}: found one column ({columns[0]}). A log needs at least who and what: two columns.")
    guessed = guess_columns(columns)
    mapping = "\n".join(f"        {key}: {_quoted(column)}{_doubt(key, column)}" for key, column in guessed.items())
    unguessed = [key for key in ("timestamp", "type", "value") if key not in guessed]
    hints = "".join(f"\n        # {key}: COLUMN" for key in unguessed)
    return f"""# A rayrec recipe. Everything that is not set has a default: `rayrec recipes --schema` lists every key.
schema: 1
name: {_quoted(name or _slug(log))}
data:
  sources:
    - path: {_quoted(_relative(log, folder))}   # a file, folder or glob; relative to this file
      # The columns found: {", ".join(columns)}
      columns:
{mapping}{hints}
{_items_section(items, folder)}  split: {{kind: leave-one-out}}   # or {{kind: time, validation: 0.1, test: 0.1}}
model: {{name: sasrec}}           # or popularity
training: {{epochs: 100, batch_size: 128}}
"""


def guess_columns(columns: list[str]) -> dict[str, str]:
    """Which column means what, by its name; the first two that are left are user and item."""
    guessed: dict[str, str] = {}
    for key, aliases in ALIASES.items():
        known = set(aliases.split())
        for column in columns:
            if _plain(column) in known and column not in guessed.values():
                guessed[key] = column
                break
    left = [column for column in columns if column not in guessed.values()]
    for key in ("user", "item"):
        if key not in guessed and left:
            guessed[key] = left.pop(0)
    return {key: guessed[key] for key in ALIASES if key in guessed}


def _doubt(key: str, column: str) -> str:
    """A word of warning where only the position of a column spoke for it."""
    return "" if _plain(column) in ALIASES[key].split() else "   # only guessed from its position: please check"


def _items_section(items: Path | None, folder: Path) -> str:
    if items is None:
        return (
            "  # items:                    # titles and categories, to see what is recommended\n"
            "  #   path: items.csv\n"
            "  #   columns: {item: COLUMN, title: COLUMN, categories: COLUMN}\n"
        )
    columns = _columns(items)
    key = guess_columns(columns).get("item", columns[0])
    named = {"item": key}
    for target, words in (("title", "title name titel nom nombre"), ("categories", "categories category genres genre")):
        found = next((c for c in columns if _plain(c) in words.split() and c != key), None)
        if found:
            named[target] = found
    mapping = ", ".join(f"{target}: {_quoted(column)}" for target, column in named.items())
    return f"  items:\n    path: {_quoted(_relative(items, folder))}\n    columns: {{{mapping}}}\n"


def _columns(path: Path) -> list[str]:
    """The column names of a file, or of the first file of a folder."""
    if path.is_dir():
        path = next((p for p in sorted(path.rglob("*")) if p.is_file() and not p.name.startswith(".")), path)
    if not path.is_file():
        raise DataError(f"{path}: there is no such file.")
    source = TableSource(path=str(path))
    kind = file_format(str(path), source)
    if kind == "parquet":
        return list(pq.read_schema(path).names)
    if kind == "csv":
        return header(str(path), source)[0]
    block = next(read_blocks(str(path), source, None), None)
    if block is None:
        raise DataError(f"{path}: the file is empty.")
    return list(block.table.column_names)


def _relative(path: Path, folder: Path) -> str:
    return os.path.relpath(path.absolute(), folder.absolute())


def _plain(text: str) -> str:
    return re.sub(r"[\W_]", "", text.partition(":")[0].lower())


def _slug(path: Path) -> str:
    stem = path.name.split(".")[0].lower()
    return re.sub(r"[^a-z0-9_.-]+", "-", stem).strip("-.") or "my-recommender"


def _quoted(text: str) -> str:
    """A YAML scalar, quoted where it has to be."""
    return yaml.safe_dump(text, default_style=None, width=10_000).splitlines()[0].strip()
