"""Features of users and of the moments of their events, as models are fitted to them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rayrec.artifacts import Storage
from rayrec.data.interactions import training_interactions
from rayrec.data.prepare import prepare
from rayrec.data.views import load_view
from rayrec.models.interactions import Interactions
from rayrec.recipe import Recipe

Read = Callable[..., Interactions]
FEATURES: dict[str, Any] = {
    "users": {"job": {"kind": "categorical"}, "age": {"kind": "numeric", "scale": "none"}},
    "context": {"device": {"kind": "categorical"}, "timestamp": {"kind": "timestamp", "parts": ["weekday"]}},
}


@pytest.fixture
def read(without_ray: None, make_recipe: Callable[..., Recipe], logs: Path, store: Storage) -> Read:
    """The training events of three users with four events each; the table of users does not have the last."""
    days = [
        f"{user},{item},{day * 86_400},{'tv' if item == 'a' else 'pc'}"
        for user in "uvw"
        for day, item in enumerate("abcd")
    ]
    (logs / "log.csv").write_text("\n".join(["user,item,time,device", *days]))
    (logs / "users.csv").write_text("user,job,age\nv,cook,30\nu,poet,20\n")

    def make(features: dict[str, Any], reads: tuple[str, ...]) -> Interactions:
        users = {"path": "users.csv", "columns": {"user": "user"}}
        prepared = prepare(make_recipe(source={"context": ["device"]}, users=users, features=features), store)
        view = load_view(prepared.dataset, prepared.view)
        return training_interactions(prepared.dataset, prepared.view, view, features=reads)

    return make


def test_users_have_a_row_each_in_the_order_of_the_view(read: Read) -> None:
    found = read(FEATURES, ("user",)).user_features
    assert found is not None
    assert found.dense(np.array([0, 1, 2])).tolist() == [[20, 0, 1], [30, 1, 0], [25, 0, 0]]


def test_training_events_have_a_row_each(read: Read) -> None:
    """Two of each user's, from Thursday on; the other two are held out."""
    interactions = read(FEATURES, ("context",))
    found, histories = interactions.context_features, interactions.histories
    assert found is not None
    assert len(found) == len(histories.items) == 6
    weekdays = np.eye(7)[[3, 4]]
    for user in range(3):
        rows = found.dense(np.arange(*histories.offsets[user : user + 2]))
        assert rows[:, 2:].tolist() == weekdays.tolist()
        assert rows[:, :2].tolist() == [[0, 1], [1, 0]], "tv for a, pc for b"


def test_what_the_model_does_not_read_or_nobody_declared_is_not_there(read: Read) -> None:
    unread, undeclared = read(FEATURES, ()), read({}, ("user", "context"))
    for interactions in (unread, undeclared):
        assert interactions.user_features is None
        assert interactions.context_features is None
