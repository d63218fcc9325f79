"""API keys: nothing without one, each only what it allows, and none once it is revoked."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from fastapi.routing import APIRoute
from fastapi.testclient import TestClient
from tests.serving.test_app import Direct
from typer.testing import CliRunner

from rayrec.cli import app as command_line
from rayrec.errors import RecipeError
from rayrec.inference.release import Release
from rayrec.recipe_serving import Serving
from rayrec.serving.access import OPEN, READING
from rayrec.serving.app import build_app
from rayrec.serving.engine import Engine
from rayrec.serving.server import require_keys
from rayrec.serving.store.keys import StoredKeys
from rayrec.serving.store.store import Store

EVENT = {"user": "u1", "item": "i1"}


@pytest.fixture(scope="module")
def engine(release: Release, filled: Store) -> Engine:
    return Engine.load(release.storage, release.digest, known=filled.histories_of, catalog=filled.catalog)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with closing(Store(f"sqlite:///{tmp_path}/state.db")) as opened:
        yield opened


@pytest.fixture
def client(engine: Engine, store: Store) -> TestClient:
    return TestClient(build_app(Direct(engine, store)), raise_server_exceptions=False)


def key(store: Store, *scopes: str, rate: int | None = None) -> dict[str, str]:
    """A header with a new key, which the store has heard of."""
    made, text = store.keys.create("test", scopes, rate)  # type: ignore[arg-type]
    heard(lambda: store.keyring.find(text) == made)
    return {"X-API-Key": text}


def heard(holds: object) -> None:
    deadline = time.monotonic() + 1
    while not holds():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.01)  # polls a thread


def routes(client: TestClient) -> list[tuple[str, str]]:
    """Every method and path of the application, with something in place of its parameters."""
    found = [route for route in client.app.routes if isinstance(route, APIRoute)]  # type: ignore[attr-defined]
    named = [(method, route) for route in found for method in route.methods]
    documents = [("GET", "/docs"), ("GET", "/openapi.json"), ("GET", "/redoc")]
    return documents + [
        (method, route.path_format.format(**dict.fromkeys(route.param_convertors, "x"))) for method, route in named
    ]


def test_nothing_but_the_probes_is_answered_without_a_key(client: TestClient, store: Store) -> None:
    key(store, "read")
    tried = routes(client)
    assert len(tried) > 50
    for method, path in tried:
        for headers in ({}, {"X-API-Key": "rr_guess"}, {"Authorization": "Basic abc"}):
            response = client.request(method, path, headers=headers, json={})
            assert (response.status_code == 401) == (path not in OPEN), (method, path, response.text)


def test_a_key_allows_what_its_scopes_say_and_nothing_else(client: TestClient, store: Store) -> None:
    reading, writing, admin = (key(store, scope) for scope in ("read", "write", "admin"))
    bearer = {"Authorization": f"Bearer {reading['X-API-Key']}"}
    assert client.get("/v1/recommend/u1", headers=reading).status_code == 200
    assert client.get("/v1/recommend/u1", headers=bearer).status_code == 200
    assert client.post("/v1/session/recommend", headers=reading, json={"items": ["i1"]}).status_code == 200
    assert client.post("/v1/events", headers=writing, json=EVENT).status_code == 200
    assert client.get("/v1/recommend/u1", headers=writing).status_code == 403
    before = store.events.page(0, 100)
    for method, path in routes(client):
        if path in OPEN or path.startswith(READING):
            continue
        if method != "GET":
            assert client.request(method, path, headers=reading, json={}).status_code == 403, (method, path)
    assert client.get("/api/recommend/u1?write-back-type=seen", headers=reading).status_code == 403
    assert client.delete("/v1/users/u1", headers=writing).status_code == 403
    assert store.events.page(0, 100) == before
    assert client.delete("/v1/users/u1", headers=admin).status_code == 200
    assert [entry["action"] for entry in store.keys.audit()] == ["key created"] * 3 + ["user erased"]
    assert store.keys.audit()[-1]["subject"] != "u1"


def test_a_revoked_key_fails_within_a_second_and_lets_nobody_else_in(client: TestClient, store: Store) -> None:
    header = key(store, "read")
    (made,) = store.keys.all()
    with closing(Store(store.database.url.render_as_string(hide_password=False))) as elsewhere:
        elsewhere.keys.revoke(made.key_id)
    heard(lambda: client.get("/v1/recommend/u1", headers=header).status_code == 401)
    assert client.get("/v1/recommend/u1").status_code == 401
    with pytest.raises(RecipeError, match="no key"):
        store.keys.revoke(made.key_id)


def test_a_rotated_key_is_another_with_the_same_rights(client: TestClient, store: Store) -> None:
    before = key(store, "read")
    (made,) = store.keys.all()
    after = {"X-API-Key": store.keys.rotate(made.key_id)}
    heard(lambda: client.get("/v1/recommend/u1", headers=after).status_code == 200)
    assert client.get("/v1/recommend/u1", headers=before).status_code == 401


def test_a_key_may_ask_so_often(client: TestClient, store: Store) -> None:
    header, other = key(store, "read", rate=3), key(store, "read")
    answers = [client.get("/v1/recommend/u1", headers=header).status_code for _ in range(5)]
    assert answers == [200] * 3 + [429] * 2
    assert client.get("/v1/recommend/u1", headers=header).headers["retry-after"] == "20"
    assert client.get("/v1/recommend/u1", headers=other).status_code == 200


def test_no_key_is_kept_or_logged(client: TestClient, store: Store, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        header = key(store, "read", "write")
        client.get("/v1/recommend/u1", headers=header)
        client.post("/v1/events", headers=header, json={"user": 1})
    secret = header["X-API-Key"]
    assert secret not in caplog.text
    files = Path(str(store.database.url.database)).parent.iterdir()
    assert not any(secret.encode() in file.read_bytes() for file in files)


def test_keys_are_made_listed_and_revoked_from_the_command_line(store: Store) -> None:
    state = ["--state", store.database.url.render_as_string(hide_password=False)]
    run = CliRunner().invoke
    made = json.loads(run(command_line, ["keys", "create", "shop", "--scope", "write", "--json", *state]).stdout)
    assert store.keys.all()[0].scopes == ("write",)
    assert StoredKeys(store.database).ring().find(made["key"]) is not None
    listed = run(command_line, ["keys", "list", "shop", *state]).stdout
    assert made["key_id"] in listed
    assert made["key"] not in listed
    assert run(command_line, ["keys", "revoke", "shop", made["key_id"], *state]).exit_code == 0
    assert StoredKeys(store.database).ring().find(made["key"]) is None
    assert "key revoked" in run(command_line, ["keys", "audit", "shop", *state]).stdout
    refused = run(command_line, ["keys", "create", "shop", "--scope", "all", *state])
    assert (refused.exit_code, "read, write, admin" in refused.stderr) == (2, True)


def test_the_queue_of_erasures_is_worked_off_from_the_command_line(store: Store) -> None:
    state = ["--state", store.database.url.render_as_string(hide_password=False)]
    run = CliRunner().invoke
    assert json.loads(run(command_line, ["data", "erase", "shop", "--queued", *state]).stdout) == []
    for wrong in ([], ["--queued", "--user", "u"]):
        refused = run(command_line, ["data", "erase", "shop", *wrong])
        assert (refused.exit_code, "--user KEY or --queued" in refused.stderr) == (2, True)


def test_without_keys_it_listens_on_this_machine_only(tmp_path: Path) -> None:
    settings = Serving(host="192.0.2.1", state=f"sqlite:///{tmp_path}/state.db")
    with pytest.raises(RecipeError, match="rayrec keys create served"):
        require_keys(settings, "served")
    require_keys(settings.model_copy(update={"host": "127.0.0.1"}), "served")
    with closing(Store(str(settings.state))) as store:
        store.keys.create("test", ["read"])
    require_keys(settings, "served")
