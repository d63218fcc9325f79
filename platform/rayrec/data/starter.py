"""A commented recipe for the user's own files, from their header."""

from __future__ import annotations

import os
import re
from pathlib import Path

import yaml

from rayrec.data.files import first_file
from rayrec.data.readers import all_columns, file_format
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

NUMBER = re.compile(r"[+-]?\d*\.?\d*")
TIME = re.compile(r"1\d{9}(\.\d+)?|1\d{12}|\d{4}-\d\d-\d\d([T ].*)?")
"""Epoch seconds or milliseconds from 2001 to 2033, or ISO 8601: no column is called that."""


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
    columns, named = _columns(log)
    if len(columns) < 2:
        raise DataError(f"{log}: found one column ({columns[0]}). A log needs at least who and what: two columns.")
    guessed = guess_columns(columns) if named else guess_positions(columns)
    mapping = "\n".join(f"        {key}: {_quoted(column)}{_doubt(key, column)}" for key, column in guessed.items())
    found = "The columns found" if named else "No header: the columns go by position, from 0. The first row"
    header = "" if named else "      header: false\n"
    unguessed = [key for key in ("timestamp", "type", "value") if key not in guessed]
    hints = "".join(f"\n        # {key}: COLUMN" for key in unguessed)
    return f"""# A rayrec recipe. Everything that is not set has a default: `rayrec recipes --schema` lists every key.
schema: 1
name: {_quoted(name or _slug(log))}
data:
  sources:
    - path: {_quoted(_relative(log, folder))}   # a file, folder or glob; relative to this file
{header}      # {found}: {", ".join(columns)}
      columns:
{mapping}{hints}
{_items_section(items, folder)}  split: {{kind: leave-one-out}}   # or {{kind: time, validation: 0.1, test: 0.1}}
model: {{name: sasrec}}           # others: docs/models.md
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


def guess_positions(cells: list[str]) -> dict[str, int]:
    """Which position means what, by the first row of a file without a header: the time by its look."""
    times = [position for position, cell in enumerate(cells) if TIME.fullmatch(cell)] if len(cells) > 2 else []
    user, item, *_ = [position for position in range(len(cells)) if position not in times[-1:]]
    return {"user": user, "item": item} | ({"timestamp": times[-1]} if times else {})


def _doubt(key: str, column: str | int) -> str:
    """A word of warning where only the position of a column spoke for it."""
    known = isinstance(column, str) and _plain(column) in ALIASES[key].split()
    return "" if known else "   # only guessed from its position: please check"


def _items_section(items: Path | None, folder: Path) -> str:
    if items is None:
        return (
            "  # items:                    # titles and categories, to see what is recommended\n"
            "  #   path: items.csv\n"
            "  #   columns: {item: COLUMN, title: COLUMN, categories: COLUMN}\n"
        )
    columns, has_names = _columns(items)
    if not has_names:
        path = _quoted(_relative(items, folder))
        return f"  items:\n    path: {path}\n    header: false\n    columns: {{item: 0}}   # the first row: {columns}\n"
    key = guess_columns(columns).get("item", columns[0])
    named = {"item": key}
    for target, words in (("title", "title name titel nom nombre"), ("categories", "categories category genres genre")):
        found = next((c for c in columns if _plain(c) in words.split() and c != key), None)
        if found:
            named[target] = found
    mapping = ", ".join(f"{target}: {_quoted(column)}" for target, column in named.items())
    return f"  items:\n    path: {_quoted(_relative(items, folder))}\n    columns: {{{mapping}}}\n"


def _columns(path: Path) -> tuple[list[str], bool]:
    """The columns of a file, or of the first file of a folder, and whether they have names, or are a first row."""
    source = TableSource(path=str(path))
    uri = first_file(source)
    columns = all_columns(uri, source)
    numbered = columns == [str(position) for position in range(len(columns))]  # as pandas calls columns without names
    data = any(map(TIME.fullmatch, columns)) or (all(map(NUMBER.fullmatch, columns)) and not numbered)
    return columns, not (data and file_format(uri, source) == "csv")


def _relative(path: Path, folder: Path) -> str:
    return os.path.relpath(path.absolute(), folder.absolute())


def _plain(text: str) -> str:
    return re.sub(r"[\W_]", "", text.partition(":")[0].lower())


def _slug(path: Path) -> str:
    stem = path.name.split(".")[0].lower()
    return re.sub(r"[^a-z0-9_.-]+", "-", stem).strip("-.") or "my-recommender"


def _quoted(text: str | int) -> str:
    """A YAML scalar, quoted where it has to be."""
    return yaml.safe_dump(text, default_style=None, width=10_000).splitlines()[0].strip()
