"""What clients write into addresses and bodies, and what they are told where it is wrong."""

from __future__ import annotations

import pytest
from fastapi.testclient import TestClient
from tests.serving.test_state import served

from rayrec.inference.release import Release
from rayrec.serving.store.store import Store


@pytest.fixture(scope="module")
def client(release: Release, filled: Store) -> TestClient:
    return served(release, filled)


def test_a_slash_of_a_key_is_told_from_those_of_the_path(client: TestClient) -> None:
    client.post("/v1/items", json=[{"item": key} for key in ("x/similar", "a/b")])
    for path, key in (("x%2Fsimilar", "x/similar"), ("a%2fb", "a/b"), ("a/b", "a/b")):
        assert client.get(f"/v1/items/{path}").json()["item"] == key
    assert client.patch("/v1/items/x%2Fsimilar", json={"title": "X"}).json()["title"] == "X"
    assert client.get("/v1/items/a%2Fb/similar").json()["item"] == "a/b"
    assert client.get("/api/item/a%2Fb").json()["ItemId"] == "a/b"
    for key in ("x/similar", "a/b"):
        assert client.delete(f"/v1/items/{key.replace('/', '%2F')}").status_code == 200


def test_a_key_with_a_line_break_is_nobody_elses(client: TestClient) -> None:
    client.post("/v1/events", json=[{"user": "bob", "item": "i1"}, {"user": "b\nob", "item": "i2"}])
    assert client.delete("/v1/users/bob%0A").status_code == 404
    assert client.get("/v1/users/b%0Aob").json()["user"] == "b\nob"
    assert client.get("/v1/recommend/b%0Aob").json()["known"] is True
    assert client.delete("/v1/users/b%0Aob").json()["removed"]["events"] == 1
    assert client.get("/v1/users/bob").status_code == 200


def test_there_is_nobody_without_a_key(client: TestClient) -> None:
    for method, path in (("GET", "/v1/recommend/"), ("DELETE", "/v1/users/"), ("DELETE", "/v1/events/")):
        assert client.request(method, path).status_code == 404
    refused = client.post("/v1/events", json={"user": " u1", "item": "i1"})
    assert (refused.status_code, "white space" in refused.text) == (422, True)


def test_a_request_without_a_body_needs_no_length(client: TestClient) -> None:
    assert client.put("/api/item/i3/category/put").json() == {"RowAffected": 1}
    assert client.post("/v1/recommend/u1").status_code == 405
    assert client.patch("/v1/items/i3/similar?n=3").status_code == 405
    assert client.delete("/api/item/i3/category/put").json() == {"RowAffected": 1}


def test_of_many_rows_it_is_said_which_one_is_wrong(client: TestClient) -> None:
    rows = [{"user": "u", "item": "i1"}, {"user": "u"}, {"user": "u", "item": "i1", "itm": 1}]
    message = client.post("/v1/events", json=rows).json()["error"]["message"]
    assert message == "[1].item: Field required; [2].itm: is not known here"


def test_a_misspelt_parameter_is_a_422_that_names_the_known_ones(client: TestClient) -> None:
    answer = client.get("/v1/recommend/u1?n=5&catgories=even")
    assert answer.status_code == 422
    assert "'catgories'" in answer.json()["error"]["message"]
    assert "categories" in answer.json()["error"]["message"]
