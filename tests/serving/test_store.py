"""The store: what is acknowledged is there, once, whatever happens; in SQLite and in PostgreSQL."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from rayrec.artifacts import Storage
from rayrec.data.dataset import Dataset, open_dataset
from rayrec.errors import RecipeError
from rayrec.inference.release import Release
from rayrec.serving.engine import histories_of
from rayrec.serving.forgetting import carry_out
from rayrec.serving.state import Event, Impression, Item, User
from rayrec.serving.store import fill, recent
from rayrec.serving.store.database import Database, UnavailableError
from rayrec.serving.store.histories import StoredHistories
from rayrec.serving.store.impressions import DAY
from rayrec.serving.store.recent import RecentEvents
from rayrec.serving.store.store import Store
from rayrec.serving.store.tables import CHANGES, ERASURES, EVENTS, METADATA

ODD = "a/b ü漢字 '; DROP TABLE events;-- %_\\ \u202e"
WRITER = Path(__file__).with_name("writer.py")


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    with closing(Store(url)) as opened:
        yield opened


def view(number: int, user: str = "u", item: str = "i", **changes: Any) -> Event:
    values: dict[str, Any] = {"type": "view", "timestamp": number, **changes}
    return Event(f"e{number}", user, item, **values)


def soon(holds: Callable[[], bool]) -> None:
    """Wait for what other replicas must have heard of within a second."""
    deadline = time.monotonic() + 1
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)  # polls another store


def test_an_event_that_comes_twice_is_kept_once_and_repeats_are_kept(store: Store) -> None:
    assert store.append([view(1), view(1), view(2)]) == 2
    assert store.append([view(1, item="another"), view(3)]) == 1
    found = [event for _, event in store.events.page(0, 10)]
    assert found == [view(1), view(2), view(3)]


def test_events_are_read_page_by_page_in_the_order_in_which_they_came(store: Store) -> None:
    events = [view(9 - n, user=f"u{n % 2}", item=f"i{n % 3}", value=n / 2, context={"at": [n]}) for n in range(8)]
    store.append(events)
    first = store.events.page(0, 5)
    assert [event for _, event in [*first, *store.events.page(first[-1][0], 5)]] == events
    assert [event for _, event in store.events.page(0, 10, user="u1", item="i1")] == [events[1], events[7]]


def test_odd_text_is_kept_as_it_is(store: Store) -> None:
    store.append([view(1, user=ODD, item=ODD, type=ODD, comment=ODD, context={ODD: ODD})])
    store.put_items([Item(ODD, ODD, (ODD,), {ODD: [ODD]}, 5, False, ODD)])
    # In what is kept as JSON any character may be.
    store.put_users([User(ODD, [ODD, "\0", None, 1.5], ODD)])
    assert store.events.page(0, 1)[0][1] == view(1, user=ODD, item=ODD, type=ODD, comment=ODD, context={ODD: ODD})
    assert store.items.get([ODD]) == [store.catalog.item(ODD)] == [Item(ODD, ODD, (ODD,), {ODD: [ODD]}, 5, False, ODD)]
    assert store.items.search("%_\\", 5) == store.items.get([ODD])
    assert store.users.get(ODD) == User(ODD, [ODD, "\0", None, 1.5], ODD)


def test_many_writers_at_once_lose_nothing(store: Store) -> None:
    with ThreadPoolExecutor(16) as threads:
        assert sum(threads.map(lambda n: store.append([view(n % 200)]), range(400))) == 200
    assert len(store.events.page(0, 1000)) == 200


def test_a_write_that_fails_takes_no_other_with_it(store: Store) -> None:
    def fails(connection: sa.Connection) -> None:
        connection.execute(sa.insert(EVENTS), [{"event_id": "half"}])

    with ThreadPoolExecutor(16) as threads:
        wrong = [threads.submit(store.database.write, fails) for _ in range(8)]
        right = [threads.submit(store.append, [view(n)]) for n in range(50)]
    assert [one.result() for one in right] == [1] * 50
    assert all(isinstance(one.exception(), sa.exc.IntegrityError) for one in wrong)


def test_other_stores_hear_of_it_within_a_second(store: Store, url: str) -> None:
    with closing(Store(url)) as other:
        histories = StoredHistories(other.recent, {"i": 1, "j": 2})
        assert histories.history("u") is None
        store.append([view(1)])
        soon(lambda: (found := histories.history("u")) is not None and found.items.tolist() == [1])
        store.append([view(2, item="j")])
        soon(lambda: (found := histories.history("u")) is not None and found.items.tolist() == [1, 2])
        store.remove_event("e1")
        soon(lambda: (found := histories.history("u")) is not None and found.items.tolist() == [2])
        store.put_items([Item("i", "A title", ("c",), timestamp=7)])
        soon(lambda: other.catalog.item("i") == Item("i", "A title", ("c",), timestamp=7))
        store.change_item("i", {"hidden": True})
        soon(lambda: other.catalog.hidden == {"i"})
        store.remove_item("i", "nobody")
        soon(lambda: other.catalog.item("i") is None)
        store.erase_user("u", "nobody")
        soon(lambda: histories.history("u") is None)


def test_what_was_read_before_a_write_is_not_remembered_after_it(store: Store) -> None:
    histories = StoredHistories(store.recent, {"i": 1})
    store.append([view(1, user="v")])
    read = store.database.read

    def slow(work: Callable[[sa.Connection], object]) -> object:
        found = read(work)
        # Somebody writes after this one has read.
        store.database.read = read  # type: ignore[method-assign]
        store.append([view(2), view(3, user="v")])
        return found

    store.database.read = slow  # type: ignore[method-assign, assignment]
    assert histories.history("u") is None
    assert [one.items.tolist() for user in ("u", "v") if (one := histories.history(user))] == [[1], [1, 1]]


def test_what_is_read_before_anybody_asks_is_what_they_would_have_been_told(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.append([view(n, user=f"u{n % 3}", item="ij"[n % 2]) for n in range(30)])
    store.append([view(99, user="u1", item="k", type="buy")])
    cold = StoredHistories(RecentEvents(store.database), {"i": 1, "j": 2}, ("view",))
    # Of the last of those who are read together there may be more.
    monkeypatch.setattr(recent, "ROWS_AT_ONCE", 25)
    store.recent.warm()
    assert [store.recent.remembered(f"u{n}") for n in range(3)] == [True, True, False]
    warm = StoredHistories(store.recent, {"i": 1, "j": 2}, ("view",))
    for user in ("u0", "u1", "u2"):
        one, other = warm.history(user), cold.history(user)
        assert one is not None
        assert other is not None
        assert (one.items.tolist(), list(one.others)) == (other.items.tolist(), list(other.others))
        assert one.times is not None
        assert one.times.tolist() == other.times.tolist()  # type: ignore[union-attr]
        assert warm.history(user) is one
    assert list(warm.history("u1").others) == ["k"]  # type: ignore[union-attr]


def test_who_is_erased_amid_that_is_in_no_memory(store: Store) -> None:
    store.append([view(n, user=f"u{n % 3}") for n in range(6)])
    read = store.database.read

    def slow(work: Callable[[sa.Connection], object]) -> object:
        found = read(work)
        store.recent.forget(["u1"])
        return found

    store.database.read = slow  # type: ignore[method-assign, assignment]
    store.recent.warm()
    assert [store.recent.remembered(f"u{n}") for n in range(3)] == [True, False, True]


def test_models_come_and_go_without_the_log_being_read_again(store: Store) -> None:
    store.append([view(1), view(2, item="j")])
    first = StoredHistories(store.recent, {"i": 1, "j": 2}).history("u")
    store.database.read = None  # type: ignore[method-assign, assignment]
    second = StoredHistories(store.recent, {"j": 7}).history("u")
    assert first is not None
    assert second is not None
    assert (first.items.tolist(), second.items.tolist(), list(second.others)) == ([1, 2], [7], ["i"])


def test_what_was_acknowledged_survives_sigkill(url: str) -> None:
    told: list[str] = []
    for _ in range(2):
        process = subprocess.Popen([sys.executable, str(WRITER), url], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        told += [process.stdout.readline().strip() for _ in range(40)]
        process.send_signal(signal.SIGKILL)
        told += process.stdout.read().split()
        process.wait()
    with closing(Store(url)) as store:
        kept = [event.event_id for _, event in store.events.page(0, 100_000)]
    assert len(kept) == len({*kept})
    # What was cut off amid a line was not told whole.
    assert {name for name in told if len(name) == len(told[0])} <= {*kept}


def test_a_filled_store_knows_the_histories_of_the_dataset(store: Store, release: Release, dataset: Dataset) -> None:
    store.fill(dataset)
    before = store.events.page(0, 100_000)
    store.fill(dataset)
    assert store.events.page(0, 100_000) == before
    scorer, expected = release.bundle().scorer(), histories_of(release)
    stored = store.histories_of(release, scorer)
    for user in expected.users.users:
        ours, theirs = stored.history(user), expected.history(user)
        assert ours is not None
        assert theirs is not None
        np.testing.assert_array_equal(ours.items, theirs.items)
        np.testing.assert_array_equal(ours.times, theirs.times)  # type: ignore[arg-type]
    assert {item.item: item.title for item in store.catalog.all()} == {f"i{n}": f"Title {n}" for n in range(30)}


def test_events_that_came_over_http_are_not_taken_in_again(store: Store, dataset: Dataset) -> None:
    store.fill(dataset)
    (_, one), *_ = store.events.page(0, 1)
    store.remove_event(one.event_id)
    store.append([Event("told", one.user, one.item, one.type, one.timestamp)])
    store.database.write(lambda connection: connection.exec_driver_sql("DELETE FROM filled"))
    store.fill(dataset)
    assert [event.event_id for _, event in store.events.page(0, 10_000, user=one.user, item=one.item)] == ["told"]


def test_who_was_erased_and_what_was_removed_does_not_come_back(store: Store, dataset: Dataset) -> None:
    store.fill(dataset)
    store.erase_user("u3", "nobody")
    store.remove_item("i7", "nobody")
    (_, one), *_ = store.events.page(0, 1, user="u4")
    store.remove_event(one.event_id)
    store.database.write(lambda connection: connection.exec_driver_sql("DELETE FROM filled"))
    store.fill(dataset)
    assert store.users.get("u3") is None
    assert store.events.page(0, 10, user="u3") == []
    assert store.catalog.item("i7") is None
    same = [found for _, found in store.events.page(0, 1000, user="u4") if found.item == one.item]
    assert one.timestamp not in [found.timestamp for found in same]
    # They may come back by themselves.
    store.append([view(1, user="u3", item="i7")])
    assert [event.event_id for _, event in store.events.page(0, 10, user="u3")] == ["e1"]
    assert store.catalog.item("i7") is None
    store.put_items([Item("i7")])
    assert store.catalog.item("i7") is not None


def test_an_erasure_waits_for_the_dataset_and_keeps_its_receipt(store: Store, dataset: Dataset, tmp_path: Path) -> None:
    shutil.copytree(dataset.storage.uri, tmp_path / "home")
    storage = Storage.open(tmp_path / "home")
    store.fill(dataset)
    store.append([view(1, user="only here"), view(2, user=" u5"), view(3, user="u6")])
    asked = [store.erase_user(user, "nobody") for user in ("u3", "only here", " u5")]
    assert store.erase_user("unheard", "nobody") is None
    assert [erasure.done for erasure in asked if erasure] == [False] * 3
    receipts = [erasure.datasets["served"] for erasure in carry_out(storage, "served", store.database)]
    assert [receipt["state"] for receipt in receipts if receipt] == ["done", "done", "unknown"]
    assert receipts[0] is not None
    assert receipts[0]["events"] > 0
    assert store.erasures.queued("served") == []
    assert all(erasure.done for _, erasure in store.erasures.page(0, 10))
    left = {*open_dataset(storage, "served").vocabulary("user")["key"].to_pylist()}
    assert "u3" not in left
    assert {"u5", "u6"} <= left
    users = sa.select(ERASURES.c.user)
    assert store.database.read(lambda connection: connection.execute(users).scalars().all()) == [None] * 3
    assert [*carry_out(storage, "served", store.database)] == []


def test_events_of_the_future_go_with_their_user(store: Store, dataset: Dataset) -> None:
    store.fill(dataset)
    far = int(time.time() * 1000) + 10**9
    coming = {"event_id": "x", "user": "u8", "item": "i1", "type": "", "timestamp": far, "value": None}
    store.append([Event(**coming)])
    store.erase_user("u8", "nobody")
    store.database.write(lambda connection: fill._insert_new(0, [coming], connection))
    assert store.events.page(0, 10, user="u8") == []


def test_repeats_of_a_log_are_taken_in_as_often(store: Store) -> None:
    row = {"event_id": "", "user": "u", "item": "i", "type": "", "timestamp": 0, "value": None}
    rows = [{**row, "event_id": f"r{n}"} for n in range(3)]
    store.database.write(lambda connection: fill._insert_new(0, rows, connection))
    newest = store.events.page(0, 10)[-1][0]
    more = [{**row, "event_id": f"again{n}"} for n in range(3)]
    store.database.write(lambda connection: fill._insert_new(newest, more, connection))
    assert [event.event_id for _, event in store.events.page(0, 10)] == ["r0", "r1", "r2"]


def test_what_was_erased_is_not_in_the_log_of_sqlite(tmp_path: Path) -> None:
    with closing(Store(f"sqlite:///{tmp_path}/state.db")) as store:
        store.append([view(1, user="to-be-forgotten")])
        store.erase_user("to-be-forgotten", "nobody")
        store.database.write(lambda connection: connection.execute(sa.update(CHANGES).values(at=0)))
        store._follower._tidied = -1e9
        store._follower._tidy()
        assert not any(b"to-be-forgotten" in file.read_bytes() for file in tmp_path.iterdir())


def test_an_impression_of_an_erased_user_is_not_written_late(store: Store) -> None:
    store.impressions.days = 1
    now = int(time.time() * 1000)
    for user in ("u", "other", None):
        store.impressions.log(Impression("r", user, now - 1, "release", "model", 1, ["i"], [1.0], [1.0]))
    store.append([view(1, user="u")])
    store.erase_user("u", "nobody")
    store.impressions.flush()
    assert {shown.user for _, shown in store.impressions.page(0, 10)} <= {"other", None}
    store.impressions.log(Impression("r", "u", now + 60_000, "release", "model", 1, ["i"], [1.0], [1.0]))
    store.impressions.flush()
    assert {shown.user for _, shown in store.impressions.page(0, 10)} == {"other", None, "u"}


def test_old_impressions_go_and_without_days_none_are_written(store: Store) -> None:
    store.impressions.days = 1
    now = int(time.time() * 1000)
    for at in (now - 2 * DAY, now - 2 * DAY, now):
        store.impressions.log(Impression("r", None, at, "release", "model", 1, ["i"], [1.0], [1.0]))
    store.impressions.flush()
    store.impressions._tidied = -1e9
    store.impressions._tidy()
    assert [shown.at for _, shown in store.impressions.page(0, 10)] == [now]
    store.impressions.days = 0
    store.impressions.log(Impression("none", None, now, "release", "model", 1, ["i"], [1.0], [1.0]))
    store.impressions.flush()
    assert store.impressions.page(0, 10, request_id="none") == []


def test_who_is_erased_while_a_dataset_is_taken_in_stays_so(
    store: Store, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = fill._rows

    def amid(*arguments: Any) -> Any:
        store.erase_user("u3", "nobody")
        return rows(*arguments)

    monkeypatch.setattr(fill, "_rows", amid)
    store.fill(dataset)
    assert store.users.get("u3") is None
    assert store.events.page(0, 10, user="u3") == []
    assert store.events.page(0, 10, user="u4") != []


def test_what_changed_is_forgotten_and_who_is_late_reads_everything(store: Store) -> None:
    histories = StoredHistories(store.recent, {"i": 1})
    store.append([view(1, user="secret")])
    store.erase_user("secret", "nobody")
    store.database.write(lambda connection: connection.execute(sa.update(CHANGES).values(at=0)))
    store._follower._tidied = store._follower._looked = -1e9
    assert histories.history("u") is None
    store._follower._tidy()
    assert store.database.read(lambda connection: connection.execute(sa.select(CHANGES)).all()) == []
    store._follower.catch_up()
    assert not histories.remembered("u")


def test_a_write_after_the_end_is_refused(url: str) -> None:
    store = Store(url)
    store.close()
    with pytest.raises(UnavailableError):
        store.append([view(1)])


def test_the_migrations_make_the_tables_that_are_declared(store: Store) -> None:
    def differences(connection: sa.Connection) -> list[object]:
        return [*compare_metadata(MigrationContext.configure(connection), METADATA)]

    assert store.database.read(differences) == []


def test_sqlite_flushes_each_commit(tmp_path: Path) -> None:
    def settings(connection: sa.Connection) -> list[object]:
        return [connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in ("journal_mode", "synchronous")]

    with closing(Database(f"sqlite:///{tmp_path}/state.db")) as database:
        # 2 is FULL.
        assert database.read(settings) == ["wal", 2]


@pytest.mark.parametrize("wrong", ["no url", "mysql://host/name", "sqlite://", "sqlite:///relative.db"])
def test_another_kind_of_url_is_refused(wrong: str) -> None:
    with pytest.raises(RecipeError, match=r"serving\.state"):
        Database(wrong)
