"""Reading YAML that somebody wrote: bounded, and with one message for whatever is wrong."""

from __future__ import annotations

import reprlib
from pathlib import Path
from typing import Any

import yaml

from rayrec.errors import RecipeError

MERGE = "tag:yaml.org,2002:merge"
VALUES_MOST = 1_000_000
"""Of a YAML file."""
_BRIEF = reprlib.Repr()
_BRIEF.maxlevel, _BRIEF.maxstring, _BRIEF.maxother = 3, 100, 100


def read_yaml(path: Path, where: str) -> dict[str, Any]:
    """The keys of a YAML file.

    Raises:
        RecipeError: It cannot be read, or holds no keys.
    """
    raw = parse_yaml(read_text(path, where), f"{where}: this")
    if not isinstance(raw, dict):
        raise RecipeError(f"{where}: expected keys with values, found {type(raw).__name__}.")
    return raw


def is_file(path: Path, what: str) -> bool:
    """Whether there is a file.

    Raises:
        RecipeError: Its name is none that the system takes.
    """
    try:
        return path.is_file()
    except OSError as error:
        raise RecipeError(f"{what}: cannot be read: {error.strerror}.") from error


def read_text(path: Path, where: str) -> str:
    """A text file, UTF-8.

    Raises:
        RecipeError: It cannot be read, or is none.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeError) as error:
        raise RecipeError(f"{where}: cannot be read as UTF-8 text: {error}") from error


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands twice, of which YAML's own takes the last without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Called for every mapping of the text."""
        keys: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != MERGE:
                if key.value in keys:
                    raise yaml.constructor.ConstructorError(None, None, f"'{key.value}' stands twice", key.start_mark)
                keys.add(key.value)
        return super().construct_mapping(node, deep)


def parse_yaml(text: str, what: str) -> Any:
    """What a YAML text says.

    Args:
        text: The text.
        what: It is called so in the message.

    Raises:
        RecipeError: It is none, holds a key twice, or more values than `VALUES_MOST`.
    """
    try:
        value = _Loader(text).get_single_data()
        _require_few(value)
    except (yaml.YAMLError, ValueError, AttributeError, RecursionError) as error:
        # Dates, numbers and nesting that YAML allows and Python does not raise what they like.
        raise RecipeError(f"{what} is not YAML that can be read: {' '.join(str(error).split())[:500]}") from error
    return value


def _require_few(value: Any) -> None:
    """Refuse what aliases of aliases make of a short text: whoever looked at all of it would never end.

    Raises:
        ValueError: There are too many values.
    """
    left, count = [value], 0
    while left:
        node = left.pop()
        inside = list(node.values()) if isinstance(node, dict) else node if isinstance(node, list) else []
        left += inside
        count += 1 + len(inside)
        if count > VALUES_MOST:
            raise ValueError(f"it holds more than {VALUES_MOST:,} values")


def brief(value: Any) -> str:
    """A value as a message shows it, whatever it is."""
    return _BRIEF.repr(value)[:200]
