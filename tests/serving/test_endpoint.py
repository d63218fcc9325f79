"""The endpoint on Ray Serve, over real HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest
from tests.recipes import USERS

from rayrec.cluster import has_fast_serve
from rayrec.inference.release import Release
from rayrec.ports import free_port
from rayrec.recipe_serving import Serving
from rayrec.serving.server import serving


@pytest.fixture(scope="module")
def url(release: Release, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    state = f"sqlite:///{tmp_path_factory.mktemp('state')}/state.db"
    settings = Serving(port=free_port(), replica_cpus=0.1, max_replicas=2, state=state)
    with serving(release.storage, release.digest, settings) as address:
        yield address


def test_the_cluster_rayrec_starts_has_the_fast_proxy(ray_cluster: None) -> None:
    assert has_fast_serve()


def test_it_answers_known_users_unknown_users_and_sessions(url: str, release: Release) -> None:
    known = httpx.get(f"{url}/v1/recommend/u3?n=4").json()
    unknown = httpx.get(f"{url}/v1/recommend/stranger?n=4").json()
    session = httpx.post(f"{url}/v1/session/recommend", json={"items": ["i1", "i2"], "n": 4}).json()

    assert [answer["source"] for answer in (known, unknown, session)] == ["model", "popular", "model"]
    assert all(len(answer["items"]) == 4 for answer in (known, unknown, session))
    assert all(answer["release"] == release.digest for answer in (known, unknown, session))
    assert all(item["title"] for item in known["items"])


def test_it_gives_the_scores_of_torch(url: str, release: Release) -> None:
    scorer = release.bundle().scorer("torch")
    answer = httpx.post(f"{url}/v1/session/recommend", json={"items": ["i4", "i5", "i6"], "n": 5}).json()

    history = scorer.rows_of(["i4", "i5", "i6"])
    rows, scores = scorer.top([history], 5, [history])
    assert [item["item"] for item in answer["items"]] == [scorer.item_keys[row - 1] for row in rows[0]]
    np.testing.assert_allclose([item["score"] for item in answer["items"]], scores[0], atol=1e-5)


def test_concurrent_requests_get_the_same_answers_as_lonely_ones(url: str) -> None:
    with httpx.Client(base_url=url, timeout=30) as client:
        alone = {u: client.get(f"/v1/recommend/u{u}?n=3").json()["items"] for u in range(USERS)}
        with ThreadPoolExecutor(16) as threads:
            together = list(threads.map(lambda u: client.get(f"/v1/recommend/u{u % USERS}?n=3"), range(USERS * 3)))

    assert {answer.status_code for answer in together} == {200}
    for place, answer in enumerate(together):
        expected = alone[place % USERS]
        assert [item["item"] for item in answer.json()["items"]] == [item["item"] for item in expected]


def test_errors_are_json_through_the_proxy_too(url: str) -> None:
    missing = httpx.get(f"{url}/v1/items/none")
    broken = httpx.post(f"{url}/v1/session/recommend", content=b"{", headers={"content-type": "application/json"})

    assert (missing.status_code, broken.status_code) == (404, 422)
    assert missing.json()["error"]["message"]
    assert broken.json()["error"]["message"]


def test_it_is_ready_with_its_release(url: str, release: Release) -> None:
    assert httpx.get(f"{url}/v1/ready").json() == {"status": "ready", "release": release.digest}
