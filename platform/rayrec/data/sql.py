"""Databases: the rows of a table or of one SELECT, streamed, by a SQLAlchemy URL. Nothing is ever written."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import sqlalchemy as sa

from rayrec.data import blocks
from rayrec.data.blocks import Block, require_columns
from rayrec.data.variables import NAME, expanded, hidden
from rayrec.errors import DataError
from rayrec.recipe_data import EventSource, TableSource

BACKENDS = ("sqlite", "postgresql", "postgres", "mysql", "mariadb", "oracle", "mssql")
PACKAGES = {"psycopg": "psycopg[binary]", "psycopg2": "psycopg2-binary", "MySQLdb": "mysqlclient"}
READ_ONLY = {
    "mysql": "SET SESSION TRANSACTION READ ONLY",
    "mariadb": "SET SESSION TRANSACTION READ ONLY",
    "oracle": "SET TRANSACTION READ ONLY",
}
"""PostgreSQL has an option of the connection for it, SQLite one of the file."""

SELECT = re.compile(r"(?:[\s(]|--[^\n]*\n|/\*.*?\*/)*(?:select|with)\b", re.IGNORECASE | re.DOTALL)
SECRET = re.compile(r"pass|pwd|secret|token|odbc_connect", re.IGNORECASE)
LITERAL = re.compile(rf"://[^/@:]*:[^@]+@|[?&][^=&]*(?:{SECRET.pattern})[^=&]*=[^&]", re.IGNORECASE)
"""A password in a URL whose variables are cut out."""

ROW_BYTES = 64
FIRST_ROWS, MOST_ROWS = 10_000, 1 << 17


@dataclass(frozen=True)
class Database:
    """What is known of a source that is a database without reading it.

    Attributes:
        uri: Its URL without user, password and options.
        size: Bytes: of an SQLite file; of another, so many as a log with as many rows would have.
        version: Changes when the rows do, see `look_up`.
    """

    uri: str
    size: int
    version: str


@dataclass(frozen=True)
class _Relation:
    """What rows are selected from, its columns, and those that tell the order."""

    rows: sa.FromClause
    names: list[str]
    order: list[str]


def is_database(source: TableSource) -> bool:
    """Whether a source is a database: as the recipe says, else by its URL."""
    if source.format != "auto":
        return source.format == "sql"
    scheme, colon, _ = expanded(source.path).partition("://")
    return bool(source.table or source.query or (colon and scheme.split("+")[0] in BACKENDS))


def look_up(source: TableSource) -> Database:
    """Open a database and see what is there.

    A database has no time of change. Of SQLite it is the file's. Of others it is the number of rows and the latest
    timestamp: that misses a change of old events that leaves both as they were. Where no timestamp column is mapped,
    as in tables of items, only the rows themselves can tell: they are read, and a checksum taken.

    Raises:
        DataError: It cannot be opened, or does not have the table or a column.
    """
    url = _url(source)
    with _connected(source) as connection:
        relation = _relation(connection, source)
        if url.get_backend_name() == "sqlite":
            return Database(_shown(url), _file(url).stat().st_size, _file_version(_file(url)))
        count = sa.select(sa.func.count()).select_from(relation.rows)
        timestamp = source.columns.timestamp if isinstance(source, EventSource) else None
        if timestamp is None:
            rows, last = connection.execute(count).scalar_one(), _checksum(connection, relation, source)
        else:
            (name,) = require_columns(_shown(url), relation.names, [timestamp])
            rows, last = connection.execute(count.add_columns(sa.func.max(sa.column(name)))).one()
        return Database(_shown(url), int(rows) * ROW_BYTES, f"{rows} rows, {last}")


def sql_names(_uri: str, source: TableSource) -> list[str]:
    """The columns of the table or query."""
    with _connected(source) as connection:
        return _relation(connection, source).names


def read_sql(uri: str, source: TableSource, columns: Sequence[str | int] | None) -> Iterator[Block]:
    """See `rayrec.data.readers.read_blocks`. Rows come in the order of the primary key, or as the query says."""
    first = 0
    with _connected(source) as connection:
        relation = _relation(connection, source)
        wanted = list(dict.fromkeys(require_columns(uri, relation.names, columns)))
        for table in _tables(connection, relation, source, wanted):
            yield Block(table, np.arange(first, first + table.num_rows))
            first += table.num_rows


# ---- the connection


@contextmanager
def _connected(source: TableSource) -> Iterator[sa.Connection]:
    """A connection that can only read; one message, without passwords, from whatever a driver says."""
    url = _url(source)
    options = [value for key, value in url.query.items() if SECRET.search(key) and isinstance(value, str)]
    try:
        with _engine(url).connect() as connection:
            connection.execution_options(postgresql_readonly=True)
            if (statement := READ_ONLY.get(connection.dialect.name)) is not None:
                connection.exec_driver_sql(statement)
            yield connection
    except sa.exc.SQLAlchemyError as error:
        said = error.orig if isinstance(error, sa.exc.DBAPIError) else error.args[0]
        reason = hidden(" ".join(str(said).split()), source.path, filter(None, [url.password, *options]))
        # Not `from error`: what the driver said would be shown after all.
        raise DataError(
            f"{_shown(url)}: cannot be read: {reason}. Check `path`, `table` and `query` in the recipe."
        ) from None


def _url(source: TableSource) -> sa.URL:
    """The URL with the values of its variables.

    Raises:
        DataError: It is none, or a password stands in it.
    """
    try:
        url = sa.make_url(re.sub("^postgres(?=[+:])", "postgresql", expanded(source.path)))
    except (sa.exc.ArgumentError, ValueError):
        scheme = source.path.partition(":")[0]
        like = "postgresql+psycopg://${USER}:${PASSWORD}@HOST/DATABASE or sqlite:///FILE"
        raise DataError(f"{scheme}: `path` is no URL of a database, such as {like}.") from None
    if LITERAL.search(NAME.sub("", source.path)):
        raise DataError(
            f"{_shown(url)}: a password stands in `path`, and recipes are recorded. Write ${{NAME}} in its place, "
            "and set NAME in the environment."
        )
    return url


def _shown(url: sa.URL) -> str:
    """A URL without user, password and options."""
    return sa.URL.create(url.drivername, None, None, url.host, url.port, url.database).render_as_string()


def _engine(url: sa.URL) -> sa.Engine:
    if url.get_backend_name() == "sqlite":
        url = url.set(database=f"file:{quote(str(_file(url).absolute()))}", query={"mode": "ro", "uri": "true"})
    try:
        return sa.create_engine(url, poolclass=sa.NullPool, hide_parameters=True)
    except ImportError as error:
        package = PACKAGES.get(str(error.name), error.name)
        raise DataError(
            f"{_shown(url)}: its driver is not installed: pip install '{package}', on every node; or name another "
            "driver, as in postgresql+psycopg://."
        ) from None


def _file(url: sa.URL) -> Path:
    """The file of an SQLite database, which SQLite would make if there were none.

    Raises:
        DataError: There is none.
    """
    path = Path(url.database or "")
    if not path.is_file():
        raise DataError(
            f"{_shown(url)}: there is no such file. A path from the root has four slashes: sqlite:////FILE."
        )
    return path


def _file_version(path: Path) -> str:
    """Of the file, and of its log of writes: they get into the file later."""
    files = [path, path.with_name(f"{path.name}-wal")]
    found = [file.stat() for file in files if file.exists()]
    return " ".join(f"{stat.st_mtime_ns}:{stat.st_size}" for stat in found if stat.st_size)


# ---- the rows


def _relation(connection: sa.Connection, source: TableSource) -> _Relation:
    shown = _shown(connection.engine.url)
    if source.table is not None and source.query is None:
        found = _table(connection, source.table, shown)
    elif source.query is not None and source.table is None:
        found = _query(connection, source.query, shown)
    else:
        raise DataError(f"{shown}: a database needs either `table`, or `query` with a SELECT.")
    if len(set(found.names)) < len(found.names):
        raise DataError(f"{shown}: two columns have the same name. Its columns: {', '.join(found.names)}.")
    return found


def _table(connection: sa.Connection, name: str, shown: str) -> _Relation:
    """A table or view, by its name or as SCHEMA.NAME."""
    inspector = sa.inspect(connection)
    before, _, after = name.rpartition(".")
    places = [(None, name), (before, after)] if before else [(None, name)]
    for schema, inner in places:
        if inspector.has_table(inner, schema):
            names = [column["name"] for column in inspector.get_columns(inner, schema)]
            order = inspector.get_pk_constraint(inner, schema)["constrained_columns"]
            return _Relation(sa.table(inner, schema=schema), names, order)
    there = ", ".join([*inspector.get_table_names(), *inspector.get_view_names()])
    raise DataError(f"{shown}: there is no table '{name}'. Its tables: {there or 'none'}.")


def _query(connection: sa.Connection, query: str, shown: str) -> _Relation:
    if not SELECT.match(query):
        raise DataError(f"{shown}: `query` is no SELECT. It must be a single one.")
    rows = _text(query).columns(sa.column("any")).subquery("rayrec")
    # As part of another statement a second one would be an error, and so would be anything but a SELECT.
    empty = connection.execute(sa.select(sa.text("*")).select_from(rows).where(sa.false()))
    return _Relation(rows, list(empty.keys()), [])


def _text(query: str) -> sa.TextClause:
    """A query as it is: no colon in it stands for a parameter, and a comment ends with it."""
    return sa.text(query.strip().rstrip(";").replace(":", r"\:") + "\n")


def _tables(
    connection: sa.Connection, relation: _Relation, source: TableSource, wanted: Sequence[str]
) -> Iterator[pa.Table]:
    """The rows, from a cursor on the server where there is such a thing, by as many as fit into a block."""
    statement: Any = sa.select(*map(sa.column, wanted)).select_from(relation.rows)
    statement = statement.order_by(*map(sa.column, relation.order)) if source.query is None else _text(source.query)
    result = connection.execution_options(stream_results=True).execute(statement)
    places = [list(result.keys()).index(name) for name in wanted]
    size = FIRST_ROWS
    while rows := result.fetchmany(size):
        columns = list(zip(*rows, strict=True))
        table = pa.table([_column(columns[place]) for place in places], names=list(wanted))
        yield table
        size = max(1, min(MOST_ROWS, len(rows) * blocks.BLOCK_BYTES // max(1, table.nbytes)))


def _column(values: Sequence[Any]) -> pa.Array:
    """Values as a driver gives them, typed where cleaning knows the type and no value is changed; else as text."""
    try:
        array = pa.array(values)
    except (pa.ArrowException, OverflowError, TypeError, ValueError):
        return pa.array(map(_as_text, values), pa.string())
    kind = array.type
    odd = pa.types.is_struct(kind) or pa.types.is_duration(kind) or isinstance(kind, pa.BaseExtensionType)
    # Arrow makes dates of times when the first value is a date.
    odd = odd or (pa.types.is_date(kind) and any(hasattr(value, "hour") for value in values))
    return pa.array(map(_as_text, values), pa.string()) if odd else array


def _as_text(value: Any) -> str | None:
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if isinstance(value, dict | list):
        return json.dumps(value, ensure_ascii=False, default=str)
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return None if value is None else str(value).encode(errors="replace").decode()


def _checksum(connection: sa.Connection, relation: _Relation, source: TableSource) -> str:
    hasher = hashlib.sha256()
    for table in _tables(connection, relation, source, relation.names):
        for batch in table.to_batches():
            hasher.update(batch.serialize())
    return hasher.hexdigest()
