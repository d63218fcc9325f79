"""``${NAME}`` in the path of a source: what it stands for goes to whoever opens the source, and into no message."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from urllib.parse import quote

from rayrec.errors import DataError

NAME = re.compile(r"\$\{(\w+)\}")
USER_INFO = re.compile(r"[\w+.-]+://[^/]*@")


def expanded(path: str) -> str:
    """A path with the values of its variables. In ``USER:PASSWORD@`` of a URL they are quoted: any text will do.

    Raises:
        DataError: The environment does not have one of them.
    """
    missing = [name for name in NAME.findall(path) if name not in os.environ]
    if missing:
        raise DataError(f"{path}: the environment has no {missing[0]}. Set it where rayrec and Ray are started.")
    user_info = match[0] if (match := USER_INFO.match(path)) else ""
    quoted = NAME.sub(lambda found: quote(os.environ[found[1]], safe=":"), user_info)
    return quoted + NAME.sub(lambda found: os.environ[found[1]], path[len(user_info) :])


def hidden(text: str, path: str, secrets: Iterable[str] = ()) -> str:
    """The text with ``${NAME}`` for the values of the path's variables, and stars for the secrets, quoted or not."""
    shown = dict.fromkeys(secrets, "***")
    shown |= {os.environ.get(name, ""): f"${{{name}}}" for name in NAME.findall(path)}
    shown |= {quote(value, safe=safe): sign for value, sign in shown.items() for safe in ("", ":", "/")}
    known = sorted(filter(None, shown), key=len, reverse=True)
    return re.sub("|".join(map(re.escape, known)), lambda found: shown[found[0]], text) if known else text


def revealed(uri: str, path: str) -> str:
    """The URI that `hidden` was given for a file of the path."""
    return expanded(uri) if NAME.search(path) else uri
