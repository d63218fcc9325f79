"""The endpoint on Ray Serve, over real HTTP."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
import ray
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample
from ray.serve._private.logging_utils import get_serve_logs_dir
from tests.exposed import exposed_names
from tests.recipes import USERS

from rayrec.cluster import has_fast_serve
from rayrec.inference.release import Release
from rayrec.ports import free_port
from rayrec.recipe_serving import Serving
from rayrec.serving.server import serving

EXPORT_SECONDS = 30
"""Ray's agent is told of metrics every ten seconds."""
LOG_SECONDS = 10


@pytest.fixture(scope="module")
def url(release: Release, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    state = f"sqlite:///{tmp_path_factory.mktemp('state')}/state.db"
    settings = Serving(
        port=free_port(), replica_cpus=0.1, max_replicas=2, state=state, log_format="json", access_log=True
    )
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


def test_each_line_of_the_log_is_json_and_names_neither_users_nor_keys(url: str, release: Release) -> None:
    began, asked = time.time(), httpx.get(f"{url}/v1/recommend/a-certain-user", headers={"x-api-key": "a-certain-key"})
    request_id, text, deadline = asked.json()["request_id"], "", time.monotonic() + LOG_SECONDS
    while request_id not in text and time.monotonic() < deadline:
        time.sleep(0.1)  # nobody tells when it is written
        text = "".join(path.read_text() for path in _logs(began))
    lines = [json.loads(line) for line in text.splitlines()]
    (told,) = [line for line in lines if line.get("request_id") == request_id]

    assert (told["route"], told["status"], told["source"]) == ("/v1/recommend/{user}", 200, "popular")
    assert told["release"] == release.digest
    assert told["replica"]
    assert "a-certain" not in text


def test_prometheus_reads_what_is_measured_from_rays_agent(url: str, release: Release) -> None:
    for _ in range(2):
        httpx.get(f"{url}/v1/recommend/u3?n=4")
    httpx.post(f"{url}/v1/events", json={"user": "u3", "item": "i1"})
    rare = {f"ray_rayrec_{name}_total" for name in ("releases_refused", "releases_rolled_back", "impressions_lost")}
    wanted, deadline, found = exposed_names() - rare, time.monotonic() + EXPORT_SECONDS, list[Sample]()
    while wanted - {sample.name for sample in found} and time.monotonic() < deadline:
        time.sleep(0.5)  # nobody tells when the agent has been told
        found = _scraped()

    assert not wanted - {sample.name for sample in found}
    live = [sample for sample in found if sample.name == "ray_rayrec_release_info"]
    assert {(sample.labels["release"], sample.value) for sample in live} == {(release.digest, 1.0)}
    assert all(sample.labels["replica"] and sample.labels["deployment"] == "endpoint" for sample in live)
    batches = {sample.labels["le"]: sample.value for sample in found if sample.name.endswith("size_requests_bucket")}
    assert 0 < batches["1.0"] <= batches["+Inf"]


def _scraped() -> list[Sample]:
    """The endpoint's own series, as Prometheus would read them."""
    (node,) = ray.nodes()
    text = httpx.get(f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics").text
    lines = [line for line in text.splitlines() if "ray_rayrec_" in line]
    return [sample for family in text_string_to_metric_families("\n".join(lines)) for sample in family.samples]


def _logs(since: float) -> list[Path]:
    """The logs of replicas that have said something since."""
    return [path for path in Path(get_serve_logs_dir()).glob("replica_*.log") if path.stat().st_mtime >= since - 1]
