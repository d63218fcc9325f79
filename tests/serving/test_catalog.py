"""What is kept of the whole catalogue stays what it would be if it were worked out anew, change by change."""

from __future__ import annotations

import numpy as np
import pytest

from rayrec.inference.runtime import Everybody
from rayrec.inference.scorer import ItemKeys, Scorer
from rayrec.serving import changes, dated
from rayrec.serving.catalog import Items
from rayrec.serving.funnel.attributes import Attributes
from rayrec.serving.outside import Outside
from rayrec.serving.queries import Wanted
from rayrec.serving.state import Item

KNOWN, ALL = 40, 55
WANTED = [
    Wanted(),
    Wanted(categories=("a",)),
    Wanted(categories=("a", "b"), labels=(("tag", "x"),)),
    Wanted(only=("k3",)),
]


def drawn(key: int, random: np.random.Generator) -> Item:
    """An item that is somehow."""
    categories = tuple(name for name in "abcd" if random.random() < 0.4)
    labels = {"tag": "x"} if random.random() < 0.5 else None
    timestamp = int(random.integers(1, 6)) * 1000 if random.random() < 0.8 else None
    return Item(f"k{key}", None, categories, labels, timestamp, hidden=bool(random.random() < 0.2))


def changed_at_random(catalog: Items, random: np.random.Generator) -> None:
    """Some items come, change or go."""
    items = [drawn(int(key), random) for key in random.integers(1, ALL + 1, random.integers(0, 4))]
    catalog.put(items, [f"k{random.integers(1, ALL + 1)}"] if random.random() < 0.5 else [])


@pytest.mark.parametrize("most_changes", [3, 100])
@pytest.mark.parametrize("one_by_one", [0, 100])
def test_changes_add_up(most_changes: int, one_by_one: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(changes, "MOST_CHANGES", most_changes)
    monkeypatch.setattr(dated, "MOST_ONE_BY_ONE", one_by_one)
    random, keys = np.random.default_rng(0), ItemKeys(f"k{row}" for row in range(1, KNOWN + 1))
    scorer = Scorer("any", Everybody(), keys, 1)
    catalog = Items(drawn(key, random) for key in range(1, ALL))
    outside, about = Outside(catalog), Attributes.of(catalog, keys, keys)
    for _ in range(60):
        for _ in range(random.integers(1, 4)):
            changed_at_random(catalog, random)
        fresh = Outside(catalog)
        for wanted in WANTED:
            offered = outside.offered(scorer, wanted)
            assert offered.rows.tolist() == fresh.offered(scorer, wanted).rows.tolist()
        items = {key: catalog.item(key) for key in keys}
        hidden = {key for key, item in items.items() if item is None or item.hidden}
        assert [keys[row - 1] for row in outside.offered(scorer).rows] == [key for key in keys if key not in hidden]
        newest = [item for item in catalog.all() if item.timestamp is not None and not item.hidden]
        newest.sort(key=lambda item: (-(item.timestamp or 0), item.item))
        assert [*catalog.newest()] == newest
        assert catalog.newest()[:3] == newest[:3]

        about, expected = about.updated(catalog, keys, keys), Attributes.of(catalog, keys, keys)
        assert about.cold == expected.cold
        assert about.came.tolist() == expected.came.tolist()
        assert named(about) == named(expected)


def named(about: Attributes) -> list[list[str]]:
    """The categories of each row by their names, in order."""
    names = {number: name for name, number in about.numbers.items()}
    return [[names[number] for number in row if number] for row in about.categories.tolist()]


def test_what_was_read_of_a_catalogue_stays_as_it_was() -> None:
    keys = ItemKeys(["k1", "k2"])
    catalog = Items([Item("k1", timestamp=1000), Item("k2", timestamp=2000)])
    newest, about = catalog.newest(), Attributes.of(catalog, keys, keys)
    offered = Outside(catalog).offered(Scorer("any", Everybody(), keys, 1))
    catalog.put([Item("k1", categories=("a",), timestamp=3000, hidden=True), Item("k3", timestamp=9000)])
    about.updated(catalog, keys, keys)
    catalog.newest()
    assert [item.item for item in newest] == ["k2", "k1"]
    assert about.came.tolist() == [-np.inf, 1.0, 2.0]
    assert not about.categories.any()
    assert not about.cold
    assert offered.rows.tolist() == [1, 2]


def test_a_catalogue_that_has_changed_too_much_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(changes, "MOST_CHANGES", 3)
    catalog = Items()
    begun = catalog.version
    catalog.put([Item("a")], ["b"])
    assert catalog.changed_after(begun) == {"a", "b"}
    catalog.put([Item("c")])
    assert catalog.changed_after(begun + 1) == {"c"}
    catalog.put([Item("d")])
    assert catalog.changed_after(begun) is None
    assert catalog.changed_after(begun + 1) == {"c", "d"}
    assert catalog.changed_after(catalog.version) == set()
