"""Features of users and of the moment over HTTP: stored, or as requests say them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from tests.data.conftest import logs, make_recipe, store, without_ray
from tests.planted import WANTED, Planted, release
from tests.serving.test_app import Direct, keys

from rayrec.artifacts import Storage
from rayrec.data.dataset import read_part
from rayrec.data.prepare import prepare
from rayrec.data.user_features import context_features, user_features
from rayrec.data.views import load_view
from rayrec.recipe import Recipe
from rayrec.serving.app import build_app
from rayrec.serving.engine import Engine
from rayrec.serving.features import FeatureError, RequestFeatures, moment

__all__ = ["logs", "make_recipe", "store", "without_ray"]

SESSION = "/v1/session/recommend"


@pytest.fixture(scope="module")
def engine(planted: Planted) -> Engine:
    found = release(planted)
    return Engine.load(found.storage, found.digest)


@pytest.fixture(scope="module")
def client(engine: Engine) -> TestClient:
    return TestClient(build_app(Direct(engine)), raise_server_exceptions=False)


@pytest.mark.parametrize(("job", "device"), WANTED)
def test_a_fresh_user_is_answered_by_what_is_said_of_them(client: TestClient, job: str, device: str) -> None:
    said = {"user": {"job": job, "age": 30}, "context": {"device": device}}
    answer = client.post(SESSION, json={"items": ["start"], "n": 4, **said}).json()
    assert (answer["source"], keys(answer)[0]) == ("model", WANTED[job, device])


def test_a_known_user_is_answered_by_what_is_stored_of_them(client: TestClient, planted: Planted) -> None:
    table = read_part(planted.job.storage, planted.dataset.manifest["users"])
    jobs = dict(zip(table["user"].to_pylist(), table["given_job"].to_pylist(), strict=True))
    for user in ("u1", "u2", "u3", "u4", "u5", "u6"):
        for device in ("tv", "pc"):
            said = {"context": json.dumps({"device": device}), "n": 5}
            found = keys(client.get(f"/v1/recommend/{user}", params=said).json())
            # What they had already is not recommended again.
            assert found[0] == WANTED[jobs[user], device] or WANTED[jobs[user], device] not in found


def test_who_did_nothing_gets_popular_items_whatever_is_said(client: TestClient) -> None:
    assert client.post(SESSION, json={"items": [], "user": {"job": "cook"}}).json()["source"] == "popular"
    assert client.get("/v1/recommend/nobody?context={}").json()["source"] == "popular"


def test_a_request_is_encoded_as_its_row_of_the_log(engine: Engine, planted: Planted) -> None:
    dataset, job = planted.dataset, planted.job
    stored = user_features(dataset, job.view)
    assert stored is not None
    table = read_part(job.storage, dataset.manifest["users"])
    said = {row["user"]: {"job": row["given_job"], "age": row["given_age"]} for row in table.to_pylist()}
    names = dataset.vocabulary("user")["key"].to_pylist()
    for place, user in enumerate(load_view(dataset, job.view).users[:20]):
        key = names[user - 1]
        row = stored.dense(np.array([place]))[0]
        (by_request,) = engine.features.encode("user", [{**said[key], "age": int(said[key]["age"])}])
        assert by_request is not None
        assert by_request.tolist() == row.tolist()
        known = engine.histories.history(key)
        assert known is not None
        assert known.features is not None
        assert known.features.tolist() == row.tolist()


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"user": {"shoe": 3}}, "user.shoe: the model reads no such column. Known: job, age."),
        ({"user": {"years": 3}}, "user.years: the model reads no such column"),
        ({"user": {"age": "thirty"}}, "user.age: must be a number, or null. Known: job, age."),
        ({"user": {"age": [30]}}, "user.age: must be a number"),
        ({"user": {"job": {"a": 1}}}, "user.job: must be a text, a number, true or false"),
        ({"user": {"job": "x" * 10_001}}, "user.job: must be a text"),
        ({"context": {"device": ["tv"]}}, "context.device: must be a text"),
        ({"context": {"timestamp": "soon"}}, "context.timestamp: must be a time: ISO 8601, or seconds or milliseconds"),
        ({"times": [5, 6]}, "times (2) must be as many as items (1)"),
        ({"items": ["start", "start"], "times": [6, 5]}, "times[1] is before times[0]"),
        ({"user": ["job"]}, "user: "),
        ({"user": {str(n): 1 for n in range(1001)}}, "user: "),
    ],
)
def test_what_cannot_be_read_is_a_422_that_names_it(client: TestClient, said: dict[str, Any], message: str) -> None:
    answer = client.post(SESSION, json={"items": ["start"], **said})
    assert answer.status_code == 422
    assert message in answer.json()["error"]["message"]


@pytest.mark.parametrize("age", [1e38, -1e308])
def test_a_number_however_large_gives_an_answer(client: TestClient, age: float) -> None:
    assert client.post(SESSION, json={"items": ["start"], "user": {"age": age}}).status_code == 200


@pytest.mark.parametrize("age", ["NaN", "Infinity", "1e999", "9" * 400, "[" * 3000])
def test_a_number_that_is_none_is_refused(client: TestClient, age: str) -> None:
    body = '{"items": ["start"], "user": {"age": ' + age + "}}"
    answer = client.post(SESSION, content=body, headers={"content-type": "application/json"})
    assert 400 <= answer.status_code < 500
    assert answer.json()["error"]["message"]


@pytest.mark.parametrize("context", ["{", "[]", "3", '{"shoe": 1}', "x" * 5000])
def test_a_context_in_the_query_is_a_json_object_of_known_columns(client: TestClient, context: str) -> None:
    answer = client.get("/v1/recommend/u1", params={"context": context})
    assert answer.status_code == 422
    assert "context" in answer.json()["error"]["message"]


def test_a_model_without_features_refuses_them(engine: Engine) -> None:
    plain = Engine(
        engine.release, engine.popular, engine.popular, engine.histories, engine.catalog, RequestFeatures(None, {})
    )
    client = TestClient(build_app(Direct(plain)))
    for name, what in (("user", "users"), ("context", "the context")):
        answer = client.post(SESSION, json={"items": ["start"], name: {"job": "cook"}})
        assert answer.status_code == 422
        assert answer.json()["error"]["message"] == f"{name}: this model reads no features of {what}. Leave it out."
    for said in ({"user": {}}, {"context": {"timestamp": "2024-05-01"}}, {"times": [1_700_000_000]}):
        assert client.post(SESSION, json={"items": ["start"], **said}).status_code == 200


def test_a_moment_is_encoded_as_its_event_in_the_log(
    without_ray: None, make_recipe: Callable[..., Recipe], logs: Path, store: Storage
) -> None:
    """Filled and clipped like it, and at the time of the request."""
    prices: list[float | None] = [1.5, None, 3, 1000, 2, None, 4, 2.5]
    events = [(time, "tv" if time % 3 else "pc", price) for time, price in enumerate(prices)]
    rows = [f"u,i{time},{time * 40_000},{device},{'' if p is None else p}" for time, device, p in events]
    (logs / "log.csv").write_text("\n".join(["user,item,time,device,price", *rows]))
    features = {"device": {"kind": "categorical"}, "price": {"kind": "numeric"}, "timestamp": {"kind": "timestamp"}}
    recipe = make_recipe(
        source={"context": ["device", "price"]},
        clean={"missing": {"price": "median"}, "outliers": {"price": {"method": "iqr"}}},
        features={"context": features},
    )
    made = prepare(recipe, store)
    stored = context_features(made.dataset, made.view, np.ones(len(events), bool))
    assert stored is not None
    asked = RequestFeatures.of(made.dataset, made.view, {"context": stored.width})
    said = [{"device": device, "price": price} for _, device, price in events]
    now = [asked.read("context", values, time * 40_000) for time, values in enumerate(said)]
    moments = [moment({"timestamp": time * 40_000}, 0) for time in range(len(said))]
    told = [asked.read("context", values, at) for values, at in zip(said, moments, strict=True)]
    expected = stored.dense(np.arange(len(events))).tolist()
    for known in (now, told):
        assert [row.tolist() for row in asked.encode("context", known) if row is not None] == expected
    (nothing,) = asked.encode("context", [asked.read("context", {}, 0)])
    assert nothing is not None
    assert nothing.any(), "the hour is known all the same"
    with pytest.raises(FeatureError, match="must be a time"):
        moment({"timestamp": "yesterday"}, 0)


def test_a_request_that_says_nothing_is_one_that_says_it_is_missing(
    without_ray: None, make_recipe: Callable[..., Recipe], logs: Path, store: Storage
) -> None:
    rows = [f"u,i{time},{time},{price}" for time, price in enumerate([1, 2, "", 9])]
    (logs / "log.csv").write_text("\n".join(["user,item,time,price", *rows]))
    recipe = make_recipe(
        source={"context": ["price"]},
        clean={"missing": {"price": "median"}},
        features={"context": {"price": {"kind": "numeric"}}},
    )
    made = prepare(recipe, store)
    stored = context_features(made.dataset, made.view, np.ones(len(rows), bool))
    assert stored is not None
    asked = RequestFeatures.of(made.dataset, made.view, {"context": stored.width})
    (found,) = asked.encode("context", [asked.read("context", {}, 0)])
    missing = stored.dense(np.array([2]))[0]
    assert missing.any(), "or nothing would tell it from what is not known"
    assert found is not None
    assert found.tolist() == missing.tolist()
