"""The database: reads, and writes that are on disk when they are acknowledged, many in one transaction."""

from __future__ import annotations

import json
import queue
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import orjson
import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from sqlalchemy.exc import DBAPIError, NoSuchModuleError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from rayrec.errors import RecipeError, StorageError

Result = TypeVar("Result")

MOST_TOGETHER = 256
"""Writes of a transaction."""
MOST_WAITING = 4096
KNOWN = "Give sqlite:////FILE or postgresql://USER:PASSWORD@HOST/DATABASE."
AWAY = "the database of events, items and users does not answer; try again in a moment."
BUSY = "the database of events, items and users has too much to do; try again in a moment."
CANCELLED = "57014"
"""PostgreSQL's word for a statement that took too long."""
PAUSE_SECONDS = 0.3
"""How long one that did not answer is not asked again."""
BUSY_SECONDS = 5
CONNECT_SECONDS = 2
MOST_CONNECTIONS = 30
"""More than there are threads that read."""
STATEMENT_SECONDS = 30
CHECKPOINTS = "wal_autocheckpoint=8000"
"""Pages of SQLite's log. Impressions change as many in seconds, here and there in indexes; by SQLite's own 1,000 most
were written twice."""
LOCK = 7_269_953_015
"""The number of PostgreSQL's lock that writers take, so that positions are visible in the order of their numbers."""
MIGRATIONS = Path(__file__).parent / "migrations"


class UnavailableError(StorageError):
    """The database does not answer; whether a write of that moment was kept is not known."""


class BusyError(StorageError):
    """Too many writes are waiting."""


@dataclass(frozen=True)
class _Write:
    """Something to write, and who waits for it."""

    work: Callable[[sa.Connection], Any]
    outcome: Future[Any]


class Database:
    """A database with the tables of `rayrec.serving.store.tables`, which are made or brought up to date first.

    Writes of all threads go through one, which commits those that wait together: a flush to disk costs more than the
    writes. SQLite's log is flushed by each commit (``synchronous=FULL``), as is PostgreSQL's unless it is told not to.

    Args:
        url: ``sqlite:////FOLDER/state.db`` or ``postgresql+psycopg://USER:PASSWORD@HOST/DATABASE``.

    Raises:
        RecipeError: The URL is none of these.
        UnavailableError: The database cannot be reached.
    """

    def __init__(self, url: str) -> None:
        self.url = _checked(url)
        self._engine = _engine(self.url)
        self._away_until = 0.0
        self._closed = False
        self._waiting: queue.Queue[_Write | None] = queue.Queue(MOST_WAITING)
        with _told(), self._engine.connect().execution_options(writes=True) as connection, connection.begin():
            migrate(connection)
        self._writer = threading.Thread(target=self._write_all, name="writer", daemon=True)
        self._writer.start()

    def read(self, work: Callable[[sa.Connection], Result]) -> Result:
        """Call ``work`` with a connection that sees one moment.

        Raises:
            UnavailableError: The database does not answer.
        """
        if time.monotonic() < self._away_until:
            # Requests that come meanwhile do not wait for an answer each.
            raise UnavailableError(AWAY)
        try:
            with _told(), self._engine.connect() as connection:
                return work(connection)
        except UnavailableError:
            self._away_until = time.monotonic() + PAUSE_SECONDS
            raise

    def write(self, work: Callable[[sa.Connection], Result]) -> Result:
        """Call ``work`` in a transaction, with other writes or alone, and return when that is on disk.

        Raises:
            UnavailableError: The database does not answer.
            BusyError: Too many writes are waiting.
            Exception: What ``work`` raises; then nothing of it is kept.
        """
        outcome: Future[Result] = Future()
        if self._closed:
            raise UnavailableError(AWAY)
        try:
            self._waiting.put_nowait(_Write(work, outcome))
        except queue.Full as error:
            raise BusyError("too many writes are waiting; try again in a moment.") from error
        return outcome.result()

    def answers(self) -> bool:
        """Whether the database answers now."""
        try:
            self.read(lambda connection: connection.execute(sa.select(1)))
        except UnavailableError:
            return False
        return True

    def empty_log(self) -> None:
        """Have SQLite empty its write-ahead log, which has what was erased until it is written over."""
        if self.url.get_backend_name() == "sqlite":
            with _told(), self._engine.connect() as connection:
                connection.rollback()
                connection.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def close(self) -> None:
        """End, after what waits has been written."""
        self._closed = True
        self._waiting.put(None)
        self._writer.join()
        self._engine.dispose()

    def _write_all(self) -> None:
        while (first := self._waiting.get()) is not None:
            together, over = [first], False
            while len(together) < MOST_TOGETHER and not over and not self._waiting.empty():
                following = self._waiting.get()
                over = following is None
                together += [following] if following is not None else []
            self._commit(together)
            if over:
                return

    def _commit(self, together: list[_Write]) -> None:
        """Do some writes in one transaction; one that fails is undone alone."""
        done: list[tuple[_Write, Any]] = []
        failed: list[tuple[_Write, Exception]] = []
        try:
            with _told(), self._engine.connect().execution_options(writes=True) as connection, connection.begin():
                if connection.dialect.name == "postgresql":
                    connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({LOCK})")
                for write in together:
                    try:
                        with connection.begin_nested():
                            done.append((write, write.work(connection)))
                    except DBAPIError as error:
                        if error.connection_invalidated or _is_away(error):
                            raise
                        busy = getattr(error.orig, "sqlstate", None) == CANCELLED
                        failed.append((write, BusyError(BUSY) if busy else error))
                    except Exception as error:
                        failed.append((write, error))
            self._away_until = 0.0
        except Exception as error:
            failed, done = [(write, error) for write in together], []
        for write, result in done:
            write.outcome.set_result(result)
        for write, problem in failed:
            write.outcome.set_exception(problem)


def migrate(connection: sa.Connection) -> None:
    """Make the tables, or bring those of an older rayrec up to date. Others who want to at the same time wait."""
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({LOCK})")
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


@contextmanager
def _told() -> Iterator[None]:
    """Say of a database that does not answer that it does not, and nothing of what was asked."""
    try:
        yield
    except PoolTimeoutError as error:
        raise BusyError(BUSY) from error
    except DBAPIError as error:
        if getattr(error.orig, "sqlstate", None) == CANCELLED:
            raise BusyError(BUSY) from error
        if not (error.connection_invalidated or _is_away(error)):
            raise
        raise UnavailableError(AWAY) from error


def _is_away(error: DBAPIError) -> bool:
    """Whether it is the database that fails, not the statement.

    SQLite's operational errors are of files, locks and full disks. PostgreSQL's have a state: there is none, or one of
    these classes, when the connection, the server or its resources are at fault.
    """
    state = getattr(error.orig, "sqlstate", None)
    if state is not None:
        return str(state).startswith(("08", "53", "57P", "58"))
    return isinstance(error, sa.exc.OperationalError | sa.exc.InterfaceError)


def _checked(url: str) -> sa.URL:
    try:
        parsed = sa.make_url(url)
        backend = parsed.get_backend_name()
    except (SQLAlchemyError, ValueError):
        # Without its cause, which may show a part of the password.
        raise RecipeError(f"serving.state: that is no URL of a database. {KNOWN}") from None
    if backend not in ("sqlite", "postgresql"):
        raise RecipeError(f"serving.state: {backend} is not supported. {KNOWN}")
    if backend == "sqlite":
        if parsed.query or not Path(parsed.database or "").is_absolute():
            raise RecipeError(f"serving.state: a file needs its whole path, since replicas run elsewhere. {KNOWN}")
        return parsed.set(drivername="sqlite")
    if backend == "postgresql" and "+" not in parsed.drivername:
        return parsed.set(drivername="postgresql+psycopg")
    return parsed


def _json(value: object) -> str:
    try:
        return orjson.dumps(value).decode()
    except TypeError:
        # Labels may have integers of more than 64 bits.
        return json.dumps(value)


def _engine(url: sa.URL) -> sa.Engine:
    if url.get_backend_name() == "sqlite":
        Path(cast("str", url.database)).parent.mkdir(parents=True, exist_ok=True)
        engine = sa.create_engine(
            url, hide_parameters=True, json_serializer=_json, connect_args={"timeout": BUSY_SECONDS}
        )
        sa.event.listen(engine, "connect", _durable)
        sa.event.listen(engine, "begin", _begin)
        return engine
    settings = {
        "connect_timeout": CONNECT_SECONDS,
        "options": f"-c statement_timeout={STATEMENT_SECONDS * 1000}",
        "application_name": "rayrec",
    }
    try:
        return sa.create_engine(
            url,
            hide_parameters=True,
            json_serializer=_json,
            pool_pre_ping=True,
            max_overflow=MOST_CONNECTIONS,
            pool_timeout=CONNECT_SECONDS,
            connect_args=settings,
        )
    except (ModuleNotFoundError, NoSuchModuleError) as error:
        raise RecipeError(
            f"serving.state: the driver of {url.drivername} is not installed. pip install 'rayrec[postgres]'"
        ) from error


def _durable(connection: Any, _record: Any) -> None:
    """Readers beside one writer, and every commit flushed."""
    # Transactions are begun by `_begin`, not by the driver.
    connection.isolation_level = None
    settings = ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "secure_delete=ON", CHECKPOINTS)
    for setting in settings:
        connection.execute(f"PRAGMA {setting}")
    # SQLite's own knows the letters of ASCII only.
    connection.create_function("lower", 1, lambda text: text and text.lower(), deterministic=True)


def _begin(connection: sa.Connection) -> None:
    """Writers wait for each other at the beginning: one that has read first could not be let in later."""
    writes = connection.get_execution_options().get("writes")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
