"""`rayrec recommend`: argument handling."""

from __future__ import annotations

from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rayrec.cli_shared import JsonOption, VerboseOption, check_output, cluster, print_json
from rayrec.errors import RecipeError

if TYPE_CHECKING:
    from rayrec.artifacts import Json
    from rayrec.tracking import RegisteredRelease

MOST = 1000
"""Items of an answer: what HTTP gives at most, too."""


def recommend(
    reference: Annotated[str, typer.Argument(metavar="NAME", help="NAME, NAME@ALIAS or NAME/VERSION.")],
    user: Annotated[str | None, typer.Argument(help="The key of a user, as in the logs.")] = None,
    all_users: Annotated[bool, typer.Option("--all-users", help="Everybody in the Dataset, into --out.")] = False,
    count: Annotated[int, typer.Option("--count", "-n", min=1, max=MOST, help="Items of each user.")] = 10,
    out: Annotated[Path | None, typer.Option("--out", help="The Parquet file of --all-users.")] = None,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """What a Release recommends: to one user, for a look, or to all of them, into a file."""
    if all_users == (user is not None):
        raise RecipeError("recommend: name a user, or give --all-users, and not both.")
    if user is not None and user != user.encode(errors="replace").decode():
        raise RecipeError("recommend: the user is no text in UTF-8, and no key of a log can be like that.")
    if all_users != (out is not None):
        raise RecipeError("recommend: --all-users and --out FILE.parquet go together.")
    if user is not None:
        _one(reference, user, count, as_json)
    elif out is not None:
        _all(reference, count, out, as_json, verbose)


def _one(reference: str, user: str, count: int, as_json: bool) -> None:
    from rayrec.artifacts import Storage
    from rayrec.serving.engine import Engine
    from rayrec.terminal import show_answer
    from rayrec.tracking import find_release

    registered = find_release(reference)
    engine = Engine.load(Storage.open(registered.storage), registered.digest)
    query = engine.user_query(user, count, 0)
    (answer,) = engine.answer([query or engine.session_query([], count, 0)])
    if as_json:
        print_json({**_named(registered), "user": user, "known": query is not None, **answer.to_json()})
    else:
        show_answer(registered, user, query is not None, answer)


def _named(registered: RegisteredRelease) -> Json:
    return {"name": registered.name, "version": registered.version, "release": registered.digest}


def _all(reference: str, count: int, out: Path, as_json: bool, verbose: bool) -> None:
    from rayrec.artifacts import Storage
    from rayrec.inference.release import open_release
    from rayrec.serving.batch import is_ours, recommend_all
    from rayrec.tracking import find_release

    check_output(out, "--out", lambda _: is_ours(out))
    registered = find_release(reference)
    storage = Storage.open(registered.storage)
    release = open_release(storage, registered.digest)
    with cluster(storage, verbose, [(release.uri, None)]) as stdout:
        users = recommend_all(release, count, out)
        with redirect_stdout(stdout):
            if as_json:
                print_json({**_named(registered), "users": users, "out": str(out)})
            else:
                typer.echo(f"{users:,} users: {out}")
            stdout.flush()
