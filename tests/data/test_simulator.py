"""The simulator's logs: reproducible, consistent, and with something in them to learn."""

from __future__ import annotations

from collections import Counter, defaultdict
from itertools import pairwise
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pytest

from rayrec.data.simulator import Simulation, simulate, write
from rayrec.errors import DataError

USERS, ITEMS, EVENTS = 800, 600, 40_000


@pytest.fixture(scope="module")
def simulation() -> Simulation:
    return simulate(USERS, ITEMS, EVENTS, seed=7)


def histories(simulation: Simulation) -> list[list[str]]:
    found: dict[str, list[str]] = defaultdict(list)
    rows = zip(*(simulation.events[name].to_pylist() for name in ("user_id", "item_id")), strict=True)
    for user, item in rows:
        found[user].append(item)
    return list(found.values())


def most_common(counts: Counter[str]) -> set[str]:
    return {item for item, _ in counts.most_common(10)}


def test_the_same_seed_gives_the_same_tables(simulation: Simulation) -> None:
    again = simulate(USERS, ITEMS, EVENTS, seed=7)
    assert again.events.equals(simulation.events)
    assert again.items.equals(simulation.items)


def test_another_seed_gives_other_tables(simulation: Simulation) -> None:
    other = simulate(USERS, ITEMS, EVENTS, seed=8)
    assert not other.events.equals(simulation.events)
    assert not other.items.equals(simulation.items)


def test_the_counts_are_those_asked_for(simulation: Simulation) -> None:
    assert simulation.events.num_rows == EVENTS
    assert simulation.items.num_rows == ITEMS
    assert pc.count_distinct(simulation.events["user_id"]).as_py() == USERS


def test_the_tables_have_the_documented_columns(simulation: Simulation) -> None:
    columns = {field.name: str(field.type) for field in simulation.events.schema}
    assert columns == {"user_id": "string", "item_id": "string", "timestamp": "int64", "event_type": "string"}
    assert simulation.items.column_names == ["item_id", "title", "categories", "released"]
    assert set(simulation.events["event_type"].to_pylist()) == {"view", "like", "purchase"}


def test_every_event_is_of_a_listed_item(simulation: Simulation) -> None:
    listed = simulation.items["item_id"].to_pylist()
    assert len(set(listed)) == ITEMS
    assert set(simulation.events["item_id"].to_pylist()) <= set(listed)


def test_titles_are_all_different_even_when_words_run_out() -> None:
    titles = simulate(users=1, items=40_000, events=1, seed=0).items["title"].to_pylist()
    assert len(set(titles)) == 40_000


def test_events_are_in_order_of_time_and_no_user_has_two_in_one_second(simulation: Simulation) -> None:
    times = simulation.events["timestamp"].to_pylist()
    assert times == sorted(times)
    assert len(set(zip(simulation.events["user_id"].to_pylist(), times, strict=True))) == EVENTS


def test_no_item_is_used_before_its_release(simulation: Simulation) -> None:
    rows = zip(simulation.items["item_id"].to_pylist(), simulation.items["released"].to_pylist(), strict=True)
    released = dict(rows)
    used = zip(simulation.events["item_id"].to_pylist(), simulation.events["timestamp"].to_pylist(), strict=True)
    assert all(released[item] <= when for item, when in used)
    assert len(set(released.values())) > ITEMS / 3


def test_the_user_base_grows(simulation: Simulation) -> None:
    users = simulation.events["user_id"].to_pylist()
    times = simulation.events["timestamp"].to_pylist()
    arrival = dict(zip(reversed(users), reversed(times), strict=True))
    middle = (times[0] + times[-1]) / 2
    assert sum(when > middle for when in arrival.values()) > 0.6 * USERS


def test_a_tenth_of_the_items_takes_over_two_fifths_of_the_events(simulation: Simulation) -> None:
    counts = Counter(simulation.events["item_id"].to_pylist())
    assert sum(count for _, count in counts.most_common(ITEMS // 10)) > 0.4 * EVENTS


def test_the_previous_item_predicts_the_next_far_better_than_popularity(simulation: Simulation) -> None:
    popularity: Counter[str] = Counter()
    following: defaultdict[str, Counter[str]] = defaultdict(Counter)
    held_out: list[tuple[str, str]] = []
    for history in histories(simulation):
        cut = int(0.8 * len(history))
        popularity.update(history[:cut])
        for before, after in pairwise(history[:cut]):
            following[before][after] += 1
        held_out.extend(pairwise(history[cut:]))
    favourites = most_common(popularity)
    neighbours = {item: most_common(counts) for item, counts in following.items()}
    by_popularity = sum(after in favourites for _, after in held_out) / len(held_out)
    by_previous = sum(after in neighbours.get(before, favourites) for before, after in held_out) / len(held_out)
    assert by_previous > 2 * by_popularity


def test_users_keep_tastes_of_their_own(simulation: Simulation) -> None:
    """The favourite topic of a user's earlier events is the later favourite far more often than a stranger's is."""
    topics: dict[str, str] = {row["item_id"]: row["categories"].split("|")[0] for row in simulation.items.to_pylist()}

    def favourite(history: list[str]) -> str:
        return Counter(topics[item] for item in history).most_common(1)[0][0]

    long = [history for history in histories(simulation) if len(history) >= 40]
    earlier = [favourite(history[: len(history) // 2]) for history in long]
    later = [favourite(history[len(history) // 2 :]) for history in long]
    own = sum(a == b for a, b in zip(earlier, later, strict=True))
    strangers = sum(a == b for a, b in zip(earlier, later[1:] + later[:1], strict=True))
    assert own > 2 * strangers


@pytest.mark.parametrize(("users", "items", "events"), [(1, 1, 1), (1, 1, 100), (50, 3, 7), (3, 2_000, 10)])
def test_tiny_and_lopsided_sizes_work(users: int, items: int, events: int) -> None:
    assert simulate(users, items, events, seed=0).events.num_rows == events


@pytest.mark.parametrize(("name", "value"), [("users", 0), ("items", 0), ("events", -1), ("seed", -1)])
def test_impossible_parameters_are_refused(name: str, value: int) -> None:
    parameters = {"users": 1, "items": 1, "events": 1, "seed": 0, name: value}
    with pytest.raises(DataError, match=f"parameter {name} is {value}"):
        simulate(**parameters)


def test_the_written_files_are_equal_byte_for_byte(tmp_path: Path) -> None:
    for folder in (tmp_path / "first", tmp_path / "second"):
        write(simulate(users=20, items=30, events=400, seed=3), folder)
    names = sorted(path.name for path in (tmp_path / "first").iterdir())
    assert names == ["SIMULATED.txt", "events.csv", "items.csv"]
    assert all((tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes() for name in names)


def test_the_written_tables_read_back_unchanged(simulation: Simulation, tmp_path: Path) -> None:
    write(simulation, tmp_path)
    assert pa_csv.read_csv(tmp_path / "events.csv").equals(simulation.events)
    assert pa_csv.read_csv(tmp_path / "items.csv").equals(simulation.items)


def test_one_line_says_that_the_data_is_simulated_and_how(simulation: Simulation, tmp_path: Path) -> None:
    write(simulation, tmp_path)
    notice = (tmp_path / "SIMULATED.txt").read_text()
    assert notice == "Simulated data, not real logs: users=800, items=600, events=40000, seed=7\n"


def test_an_unwritable_folder_is_reported(simulation: Simulation, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="Choose a writable folder"):
        write(simulation, tmp_path / "file")
