"""The demo: the main job once, end to end, as a user would do it, with what it answers shown."""

from __future__ import annotations

from dataclasses import dataclass

import httpx
from rich.console import Console
from rich.table import Table

from rayrec import pipeline
from rayrec.artifacts import Json, Storage
from rayrec.cluster import connected
from rayrec.errors import ClusterError
from rayrec.ports import free_port
from rayrec.recipe import Recipe
from rayrec.recipe_files import load_recipe
from rayrec.serving.server import serving
from rayrec.terminal import RunDisplay, show_result
from rayrec.tracking import find_release

SHOWN = 5


@dataclass(frozen=True)
class Question:
    """Something to ask the endpoint: what it shows, and the request."""

    title: str
    method: str
    path: str
    body: Json | None = None


def run_demo(simulated: bool) -> None:
    """MovieLens 100K from logs to answers over HTTP; then everything is shut down.

    Raises:
        ClusterError: An answer is not what it should be.
    """
    recipe = load_recipe("movielens-100k", simulated=simulated)
    storage = Storage.open(recipe.storage)
    with connected(storage):
        with RunDisplay(recipe) as display:
            result = pipeline.run(recipe, storage, display)
        show_result(result)
        _ask(recipe, storage, result.dataset.vocabulary("user")["key"][0].as_py())
    Console().print("Everything is shut down again. Your turn: rayrec init YOUR_LOG.csv --out recipe.yaml")


def _ask(recipe: Recipe, storage: Storage, user: str) -> None:
    release = find_release(recipe.name)
    settings = recipe.serving.model_copy(update={"port": free_port()})
    with serving(storage, release.digest, settings) as url, httpx.Client(base_url=url, timeout=30) as client:
        known = _answer(client, Question(f"known user {user}", "GET", f"/v1/recommend/{user}?n={SHOWN}"))
        _show(known)
        _show(_answer(client, Question("unknown user", "GET", f"/v1/recommend/nobody-yet?n={SHOWN}")))
        seen = [item["item"] for item in known["items"][:2]]
        titles = ", ".join(str(item["title"]) for item in known["items"][:2])
        body = {"items": seen, "n": SHOWN}
        _show(_answer(client, Question(f"session: {titles}", "POST", "/v1/session/recommend", body)))


def _answer(client: httpx.Client, question: Question) -> Json:
    """The endpoint's answer, checked."""
    response = client.request(question.method, question.path, json=question.body)
    if response.status_code != httpx.codes.OK:
        raise ClusterError(f"{question.method} {question.path} answered {response.status_code}: {response.text[:300]}")
    answer: Json = response.json()
    if len(answer["items"]) != SHOWN:
        raise ClusterError(f"{question.path} gave {len(answer['items'])} items instead of {SHOWN}.")
    return answer | {"question": question}


def _show(answer: Json) -> None:
    question: Question = answer["question"]
    label = " (SIMULATED DATA)" if answer["simulated"] else ""
    title = f"{question.title}{label}: {question.method} {question.path}  (source: {answer['source']})"
    table = Table(title=title, title_justify="left")
    for column in ("title", "categories", "score"):
        table.add_column(column, justify="right" if column == "score" else "left")
    for item in answer["items"]:
        table.add_row(str(item["title"]), ", ".join(item["categories"]), f"{item['score']:.3f}")
    Console(highlight=False).print(table)
