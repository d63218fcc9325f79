"""The route that is asked most answers as all routes do, though it passes by FastAPI."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote

import pytest
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st
from tests.serving.test_app import Direct as Answering

from rayrec.inference.release import Release
from rayrec.serving import app
from rayrec.serving.app import build_app
from rayrec.serving.batching import OverloadedError
from rayrec.serving.direct import Direct
from rayrec.serving.engine import Engine
from rayrec.serving.store.store import Store

USERS = st.one_of(
    st.sampled_from(["u1", "u3", "stranger", "a/b", "u1/", "..", ".", "%", "u%31", "ü", " u1", "u1\n", "", "u1?x"]),
    st.text(st.characters(codec="utf-8"), max_size=12),
)
NUMBERS = st.one_of(
    st.integers(-2, 12).map(str), st.sampled_from(["1000", "1001", "007", "+3", "1e1", "", "\uff19", "1" * 30])
)


class Counting(Direct):
    """How often it answers itself."""

    answered = 0

    def __call__(self, request: Any) -> Any:
        found = super().__call__(request)
        type(self).answered += found is not None
        return found


@contextmanager
def both(backend: Answering) -> Iterator[tuple[TestClient, TestClient]]:
    """A client of the application, and one of the same without the direct way."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(app, "Direct", Counting)
        usual = TestClient(build_app(backend), raise_server_exceptions=False)
        patch.setattr(app, "Direct", lambda _backend: lambda _request: None)
        yield usual, TestClient(build_app(backend), raise_server_exceptions=False)


@pytest.fixture(scope="module")
def backend(release: Release, filled: Store) -> Answering:
    return Answering(
        Engine.load(release.storage, release.digest, known=filled.histories_of, catalog=filled.catalog), filled
    )


@pytest.fixture(scope="module")
def clients(backend: Answering) -> Iterator[tuple[TestClient, TestClient]]:
    with both(backend) as found:
        yield found


def seen(client: TestClient, address: str, method: str = "GET") -> tuple[int, Any, dict[str, str]]:
    """What comes back, less what is another every time."""
    answer = client.request(method, address)
    headers = {name: value for name, value in answer.headers.items() if name not in {"x-request-id", "content-length"}}
    body = answer.json() if answer.content else None
    return answer.status_code, body and {**body, "request_id": ""}, headers


@given(user=USERS, n=st.none() | NUMBERS, offset=st.none() | NUMBERS, safe=st.sampled_from(["", "/:@~"]))
def test_it_answers_as_the_other_way_does(
    clients: tuple[TestClient, TestClient], user: str, n: str | None, offset: str | None, safe: str
) -> None:
    said = [f"{name}={quote(value)}" for name, value in (("n", n), ("offset", offset)) if value is not None]
    address = f"/v1/recommend/{quote(user, safe=safe)}" + ("?" + "&".join(said) if said else "")
    assert seen(clients[0], address) == seen(clients[1], address)


@pytest.mark.parametrize(
    ("address", "is_direct"),
    [
        ("/v1/recommend/u1", True),
        ("/v1/recommend/u1?n=3", True),
        ("/v1/recommend/u1?n=3&offset=2", True),
        ("/v1/recommend/a%2Fb", False),
        ("/v1/recommend/u1?debug=false", False),
        ("/v1/recommend/u1?n=0", False),
        ("/v1/recommend/u1?offset=99999", False),
        ("/v1/users/u1", False),
    ],
)
def test_what_is_out_of_the_ordinary_goes_the_other_way(
    clients: tuple[TestClient, TestClient], address: str, is_direct: bool
) -> None:
    before = Counting.answered
    clients[0].get(address)
    assert Counting.answered - before == is_direct


@pytest.mark.parametrize("failure", [OverloadedError(), RuntimeError("at night")])
def test_errors_are_told_as_the_other_way_does(backend: Answering, failure: Exception) -> None:
    backend.failure = failure
    try:
        with both(backend) as (direct, other):
            found = seen(direct, "/v1/recommend/u1")
            assert found == seen(other, "/v1/recommend/u1")
            assert found[0] in {429, 500}
    finally:
        backend.failure = None
