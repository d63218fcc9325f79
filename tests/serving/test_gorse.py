"""Gorse's own Python client against the endpoint on Ray Serve."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

import httpx
import pytest
from gorse import Gorse, GorseException
from tests.recipes import ITEMS, USERS

from rayrec.data.dataset import Dataset, read_part
from rayrec.inference.release import Release
from rayrec.ports import free_port
from rayrec.recipe_serving import Serving
from rayrec.serving.gorse import seconds
from rayrec.serving.server import serving

AT = "2022-02-24T00:00:00Z"
VUE = {
    "ItemId": "vuejs:vue",
    "IsHidden": False,
    "Labels": {"language": "JavaScript"},
    "Categories": ["framework"],
    "Timestamp": AT,
    "Comment": "Vue.js framework",
}


@pytest.fixture(scope="module")
def url(release: Release, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    state = f"sqlite:///{tmp_path_factory.mktemp('state')}/state.db"
    with serving(release.storage, release.digest, Serving(port=free_port(), replica_cpus=0.1, state=state)) as address:
        yield address


@pytest.fixture
def client(url: str) -> Gorse:
    return Gorse(url, "no key is needed yet")


def told(kind: str, user: str, item: str, value: float = 0) -> dict[str, object]:
    return {"FeedbackType": kind, "UserId": user, "ItemId": item, "Timestamp": AT, "Value": value}


def test_users_are_told_of_found_and_forgotten(client: Gorse) -> None:
    bob = {"UserId": "bob", "Labels": {"gender": "M", "age": 24}, "Comment": "my user"}
    assert client.insert_user(bob) == {"RowAffected": 1}
    assert client.get_user("bob") == bob
    assert client.insert_users([{"UserId": "ada"}, {"UserId": "eve", "Labels": ["a"]}]) == {"RowAffected": 2}

    everybody, cursor = [], ""
    while True:
        page, cursor = client.get_users(25, cursor)
        everybody += [user["UserId"] for user in page]
        if not cursor:
            break
    assert sorted(everybody) == sorted([*(f"u{n}" for n in range(USERS)), "bob", "ada", "eve"])

    client.insert_feedback("star", "eve", "i1", AT)
    assert client.delete_user("eve") == {"RowAffected": 1}
    with pytest.raises(GorseException) as gone:
        client.get_user("eve")
    assert gone.value.status_code == 404
    assert client.list_feedbacks("star", "eve") == []


def test_items_are_told_of_found_changed_and_forgotten(client: Gorse) -> None:
    assert client.insert_item(VUE) == {"RowAffected": 1}
    assert client.get_item("vuejs:vue") == VUE
    assert [item["ItemId"] for item in client.search_items("VUE.JS")] == ["vuejs:vue"]

    assert client.update_item("vuejs:vue", is_hidden=True, comment="kept back") == {"RowAffected": 1}
    assert client.get_item("vuejs:vue") == {**VUE, "IsHidden": True, "Comment": "kept back"}
    items, cursor = client.get_items(ITEMS)
    assert len(items) == ITEMS
    rest, end = client.get_items(100, cursor)
    assert "vuejs:vue" in [item["ItemId"] for item in rest]
    assert end == ""

    client.insert_feedback("star", "u1", "vuejs:vue", AT)
    assert client.delete_item("vuejs:vue") == {"RowAffected": 1}
    with pytest.raises(GorseException) as gone:
        client.get_item("vuejs:vue")
    assert gone.value.status_code == 404
    assert client.list_feedbacks("star", "u1") == []


def test_feedback_is_summed_up_by_post_and_replaced_by_put(client: Gorse, url: str) -> None:
    assert client.insert_feedback("read", "carl", "i1", AT, 1.5) == {"RowAffected": 1}
    assert client.insert_feedbacks([told("read", "carl", "i1", 2), told("like", "carl", "i1")]) == {"RowAffected": 2}
    (read,) = client.list_feedbacks("read", "carl")
    assert {**told("read", "carl", "i1", 3.5), "Updated": AT, "Comment": ""} == read

    assert httpx.put(f"{url}/api/feedback", json=[told("read", "carl", "i1", 7)]).json() == {"RowAffected": 1}
    assert client.list_feedbacks("read", "carl")[0]["Value"] == 7
    assert httpx.get(f"{url}/api/feedback/read/carl/i1").json()["Value"] == 7
    assert len(httpx.get(f"{url}/api/feedback/carl/i1").json()) == 2
    assert {one["FeedbackType"] for one in httpx.get(f"{url}/api/user/carl/feedback/").json()} == {"read", "like"}
    assert "carl" in {one["UserId"] for one in httpx.get(f"{url}/api/item/i1/feedback/read").json()}

    assert client.delete_feedback("carl", "i1") == {"RowAffected": 2}
    assert client.list_feedbacks("read", "carl") == []


def test_all_feedback_is_read_page_by_page_each_once(client: Gorse, dataset: Dataset) -> None:
    found, cursor, pages = [], "", 0
    while True:
        page, cursor = client.get_feedbacks(100, cursor)
        found += [(one["UserId"], one["ItemId"], one["FeedbackType"]) for one in page]
        pages += 1
        if not cursor:
            break
    assert pages > 5
    assert len(found) == len({*found})
    users, items = (dataset.vocabulary(name)["key"].to_pylist() for name in ("user", "item"))
    (part,) = dataset.manifest["events"]
    log = read_part(dataset.storage, part, ["user", "item", "type"]).to_pylist()
    assert {(users[row["user"] - 1], items[row["item"] - 1], row["type"]) for row in log} <= {*found}


def test_recommendations_follow_feedback(client: Gorse, url: str) -> None:
    first = client.get_recommend("u5", n=5)
    assert [score.score for score in first] == sorted((score.score for score in first), reverse=True)
    native = [item["item"] for item in httpx.get(f"{url}/v1/recommend/u5?n=5").json()["items"]]
    assert [score.id for score in first] == native == httpx.get(f"{url}/api/recommend/u5?n=5").json()
    assert [score.id for score in client.get_recommend("u5", n=3, offset=2)] == native[2:]

    client.insert_feedback("read", "u5", native[0], datetime.now(UTC).isoformat())
    assert native[0] not in [score.id for score in client.get_recommend("u5", n=30)]
    even = [score.id for score in client.get_recommend("u5", "even", n=30)]
    assert even
    assert all(int(key[1:]) % 2 == 0 for key in even)


def test_what_was_recommended_can_be_written_back(client: Gorse) -> None:
    shown = [score.id for score in client.get_recommend("dora", n=3, write_back_type="seen", write_back_delay="1h")]
    written = client.list_feedbacks("seen", "dora")
    assert {one["ItemId"] for one in written} == {*shown}
    assert all(one["Timestamp"] > datetime.now(UTC).isoformat() for one in written)
    assert not {*shown} & {score.id for score in client.get_recommend("dora", n=30)}


def test_sessions_neighbours_and_lists(client: Gorse, url: str) -> None:
    session = client.session_recommend([told("read", "", item) for item in ("i3", "i4")], n=4)
    assert len(session) == 4
    assert not {"i3", "i4"} & {one["Id"] for one in session}
    neighbours = client.get_neighbors("i4", n=3)
    assert len(neighbours) == 3
    assert "i4" not in {one["Id"] for one in neighbours}
    assert httpx.get(f"{url}/api/item-to-item/any/i4?n=3").json() == neighbours
    assert client.get_neighbors("i4", n=2, offset=1) == neighbours[1:]

    odd = httpx.get(f"{url}/api/item/i4/neighbors/odd?n=30").json()
    assert odd
    assert all(int(one["Id"][1:]) % 2 for one in odd)

    others = httpx.get(f"{url}/api/user/u1/neighbors?n=4").json()
    assert "u1" not in {one["Id"] for one in others}
    assert [one["Score"] for one in others] == sorted((one["Score"] for one in others), reverse=True)
    popular = httpx.get(f"{url}/api/popular?n=3").json()
    assert popular == httpx.get(f"{url}/api/non-personalized/popular?n=3").json()

    client.insert_item({"ItemId": "brand new", "Timestamp": "2030-01-01T00:00:00Z"})
    assert httpx.get(f"{url}/api/latest?n=1").json()[0]["Id"] == "brand new"
    assert httpx.get(f"{url}/api/non-personalized/unheard-of").status_code == 404


def test_categories_are_added_and_taken(client: Gorse, url: str) -> None:
    client.insert_item({"ItemId": "sorted", "Categories": ["a"]})
    assert httpx.put(f"{url}/api/item/sorted/category/b").json() == {"RowAffected": 1}
    assert client.get_item("sorted")["Categories"] == ["a", "b"]
    assert httpx.delete(f"{url}/api/item/sorted/category/a").json() == {"RowAffected": 1}
    assert client.get_item("sorted")["Categories"] == ["b"]


def test_probes_say_that_it_can_be_asked(url: str) -> None:
    assert httpx.get(f"{url}/api/health/live").json()["Ready"] is True
    assert httpx.get(f"{url}/api/health/ready").status_code == 200


def test_durations_are_read_as_go_writes_them() -> None:
    assert [seconds(text) for text in ("", "90s", "2m", "1h1m1s")] == [0, 90, 120, 3661]
