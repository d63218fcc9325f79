"""The HTTP surface, without Serve: the same application around a real Release."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from tests.recipes import ITEMS

from rayrec.inference.release import Release, open_release
from rayrec.serving.app import build_app
from rayrec.serving.batching import OverloadedError
from rayrec.serving.engine import Engine
from rayrec.serving.queries import Answer, Query
from rayrec.serving.store.store import Store


class Direct:
    """A backend that answers at once, or not at all."""

    def __init__(self, engine: Engine | None, store: Store | None = None) -> None:
        self.engine = engine
        self.store = store
        self.refused: str | None = None
        self.tells_request_id = False
        self.failure: Exception | None = None
        self.deadline = 10.0

    def engine_of(self, user: str | None) -> Engine | None:
        return self.engine

    async def answer(self, engine: Engine, query: Query) -> Answer:
        if self.failure:
            raise self.failure
        return engine.answer([query])[0]


@pytest.fixture(scope="module")
def engine(release: Release, filled: Store) -> Engine:
    """The Release in memory."""
    return Engine.load(release.storage, release.digest, known=filled.histories_of, catalog=filled.catalog)


@pytest.fixture(scope="module")
def backend(engine: Engine, filled: Store) -> Direct:
    return Direct(engine, filled)


@pytest.fixture(scope="module")
def client(backend: Direct) -> TestClient:
    return TestClient(build_app(backend), raise_server_exceptions=False)


def keys(answer: dict[str, Any]) -> list[str]:
    return [item["item"] for item in answer["items"]]


def test_a_known_user_gets_the_models_items_with_titles_and_none_they_had(client: TestClient, engine: Engine) -> None:
    answer = client.get("/v1/recommend/u1?n=5").json()

    history = engine.histories.history("u1")
    assert history is not None
    had = {engine.scorer.item_keys[row - 1] for row in history.items}
    assert (answer["user"], answer["known"], answer["source"]) == ("u1", True, "model")
    assert len(answer["items"]) == 5
    assert not had & set(keys(answer))
    assert all(item["title"] == f"Title {item['item'][1:]}" for item in answer["items"])
    assert all("all" in item["categories"] for item in answer["items"])
    assert answer["release"] == engine.release.digest


def test_an_answer_is_the_scorers_own(client: TestClient, engine: Engine) -> None:
    answer = client.get("/v1/recommend/u7?n=4").json()

    history = engine.histories.history("u7")
    assert history is not None
    rows, scores = engine.scorer.top([history.items], 4, [history.items])
    assert keys(answer) == [engine.scorer.item_keys[row - 1] for row in rows[0]]
    np.testing.assert_allclose([item["score"] for item in answer["items"]], scores[0], atol=1e-5)


def test_a_user_nobody_has_seen_gets_popular_items_marked_so(client: TestClient) -> None:
    answer = client.get("/v1/recommend/nobody?n=3").json()

    assert (answer["known"], answer["source"]) == (False, "popular")
    scores = [item["score"] for item in answer["items"]]
    assert len(scores) == 3
    assert scores == sorted(scores, reverse=True)


def test_an_offset_goes_on_where_the_page_before_ended(client: TestClient) -> None:
    whole = keys(client.get("/v1/recommend/u1?n=6").json())

    assert keys(client.get("/v1/recommend/u1?n=3&offset=3").json()) == whole[3:]


def test_past_the_last_item_the_list_ends(client: TestClient) -> None:
    answer = client.get(f"/v1/recommend/u1?n={ITEMS * 2}").json()

    assert 0 < len(answer["items"]) < ITEMS


def test_a_session_is_answered_by_what_it_saw_last(client: TestClient) -> None:
    answer = client.post("/v1/session/recommend", json={"items": ["i3", "i4", "i5"], "n": 3}).json()

    assert answer["source"] == "model"
    assert not {"i3", "i4", "i5"} & set(keys(answer))


def test_a_session_of_unknown_items_gets_popular_items(client: TestClient) -> None:
    answer = client.post("/v1/session/recommend", json={"items": ["no such thing"]}).json()

    assert answer["source"] == "popular"
    assert len(answer["items"]) == 10


def test_an_item_has_its_title_and_categories(client: TestClient) -> None:
    answer = client.get("/v1/items/i4").json()

    assert (answer["item"], answer["title"], answer["categories"]) == ("i4", "Title 4", ["even", "all"])


def test_similar_items_do_not_contain_the_item_itself(client: TestClient) -> None:
    answer = client.get("/v1/items/i4/similar?n=5").json()

    assert answer["item"] == "i4"
    assert len(answer["items"]) == 5
    assert "i4" not in keys(answer)


@pytest.mark.parametrize("path", ["/v1/items/none", "/v1/items/none/similar", "/nothing/here"])
def test_what_is_not_there_is_a_404_with_a_json_body(client: TestClient, path: str) -> None:
    response = client.get(path)

    assert response.status_code == 404
    assert response.json()["error"]["status"] == 404
    assert response.json()["request_id"] == response.headers["x-request-id"]


@pytest.mark.parametrize(
    "query", ["n=0", "n=-1", "n=1000000000", "n=many", "offset=-1", "offset=99999999", "n=1e3", "n="]
)
def test_a_bad_parameter_is_a_422_that_names_it(client: TestClient, query: str) -> None:
    response = client.get(f"/v1/recommend/u1?{query}")

    assert response.status_code == 422
    assert query.split("=", maxsplit=1)[0] in response.json()["error"]["message"]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"items": null}',
        b'{"items": [1]}',
        b'{"items": [], "extra": 1}',
        b'{"items": ["i1"], "n": 0}',
        b"[" * 10_000,
        b'{"items": [' + b'"i1",' * 1000 + b'"i1"]}',
    ],
)
def test_a_bad_body_is_a_4xx_with_a_json_body(client: TestClient, body: bytes) -> None:
    response = client.post("/v1/session/recommend", content=body, headers={"content-type": "application/json"})

    assert 400 <= response.status_code < 500
    assert response.json()["error"]["message"]


def test_a_huge_body_is_refused_before_it_is_read(client: TestClient) -> None:
    response = client.post("/v1/session/recommend", content=b" " * (2 << 20))

    assert response.status_code == 413


def test_a_body_of_unknown_length_is_refused(client: TestClient) -> None:
    response = client.post("/v1/session/recommend", content=iter([b"{}"]))

    assert response.status_code == 411


def test_odd_but_valid_user_ids_are_users_like_others(client: TestClient) -> None:
    for user in ("a/b", "ü ñ 漢字", "'; DROP TABLE users;--", "%2F", "u1/similar"):
        answer = client.get(f"/v1/recommend/{user.replace('%', '%25')}")
        assert answer.status_code == 200, user


def test_the_request_id_of_the_client_is_kept_if_it_is_one(client: TestClient) -> None:
    kept = client.get("/v1/health", headers={"x-request-id": "abc-123"})
    replaced = client.get("/v1/health", headers={"x-request-id": "not an id " * 50})

    assert kept.headers["x-request-id"] == "abc-123"
    assert len(replaced.headers["x-request-id"]) == 32


def test_overload_is_a_429_that_says_when_to_come_back(
    client: TestClient, backend: Direct, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend, "failure", OverloadedError())

    response = client.get("/v1/recommend/u1")

    assert response.status_code == 429
    assert response.headers["retry-after"] == "1"


def test_a_fault_is_a_500_without_its_traceback(
    client: TestClient, backend: Direct, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend, "failure", KeyError("secret internals"))

    response = client.get("/v1/recommend/u1")

    assert response.status_code == 500
    assert "secret" not in response.text
    assert response.json()["request_id"]


def test_before_a_release_is_loaded_it_is_alive_but_not_ready() -> None:
    client = TestClient(build_app(Direct(None)))

    assert client.get("/v1/health").status_code == 200
    assert client.get("/v1/ready").status_code == 503
    assert client.get("/v1/recommend/u1").headers["retry-after"] == "1"


def test_the_openapi_document_describes_every_route(client: TestClient) -> None:
    paths = client.get("/openapi.json").json()["paths"]

    assert {"/v1/recommend/{user}", "/v1/session/recommend", "/v1/items/{item}", "/v1/items/{item}/similar"} <= set(
        paths
    )


def test_a_damaged_release_is_not_loaded(engine: Engine) -> None:
    from rayrec.errors import ModelError

    storage = engine.release.storage
    with pytest.raises(ModelError, match="no Release"):
        open_release(storage, "0" * 16)
