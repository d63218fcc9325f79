"""`rayrec keys`: argument handling."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rayrec.cli_shared import JsonOption, StateOption, endpoint_database, print_json
from rayrec.errors import RecipeError

if TYPE_CHECKING:
    from rayrec.serving.store.keys import StoredKeys

keys_app = typer.Typer(help="API keys of an endpoint: who may ask it what.", no_args_is_help=True)

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="The recommender: the recipe's name.")]
KeyArgument = Annotated[str, typer.Argument(metavar="KEY", help="The key's id, as `list` shows it.")]
SCOPES = "read: ask. write: tell of events, items and users. admin: erase users."


@keys_app.command()
def create(
    name: NameArgument,
    label: Annotated[str, typer.Option("--for", help="Whose it is, for people.")] = "",
    scope: Annotated[list[str], typer.Option("--scope", help=f"{SCOPES} Several by repeating.")] = ["read"],  # noqa: B006
    rate: Annotated[int | None, typer.Option(min=1, help="Requests a minute of each replica.")] = None,
    state: StateOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a key and print it. It cannot be shown again."""
    from rayrec.serving.store.keys import SCOPES as KNOWN

    wrong = sorted({*scope} - {*KNOWN})
    if wrong:
        raise RecipeError(f"--scope {wrong[0]}: known are {', '.join(KNOWN)}.")
    with _keys(name, state) as keys:
        is_first = not keys.ring().required
        key, text = keys.create(label, [one for one in KNOWN if one in scope], rate)
    if is_first:
        typer.echo(f"the first key of {name}: from now on nothing is answered without one", err=True)
    if as_json:
        print_json({"key_id": key.key_id, "scopes": list(key.scopes), "rate": key.rate, "key": text})
    else:
        typer.echo(f"key {key.key_id} of {name} may {', '.join(key.scopes)}; it is not shown again:", err=True)
        typer.echo(text)


@keys_app.command("list")
def list_keys(name: NameArgument, state: StateOption = None, as_json: JsonOption = False) -> None:
    """The keys there have been."""
    from dataclasses import asdict

    with _keys(name, state) as keys:
        found = keys.all()
    if as_json:
        print_json({"keys": [{**asdict(key), "scopes": list(key.scopes)} for key in found]})
        return
    if not found:
        typer.echo(f"{name} has no keys: whoever is on the machine that serves may ask", err=True)
    for key in found:
        rate = "" if key.rate is None else f"  {key.rate} a minute"
        end = "" if key.revoked is None else f"  revoked {_day(key.revoked)}"
        typer.echo(
            f"{key.key_id}  {','.join(key.scopes):16}  since {_day(key.created)}  {key.name}{rate}{end}".rstrip()
        )


@keys_app.command()
def rotate(name: NameArgument, key: KeyArgument, state: StateOption = None) -> None:
    """Give a key another text and print it; the one before is no longer good."""
    with _keys(name, state) as keys:
        typer.echo(keys.rotate(key))


@keys_app.command()
def revoke(name: NameArgument, key: KeyArgument, state: StateOption = None) -> None:
    """Make a key no longer good."""
    with _keys(name, state) as keys:
        keys.revoke(key)
    typer.echo(f"key {key} of {name} is no longer good")


@keys_app.command()
def audit(name: NameArgument, state: StateOption = None, as_json: JsonOption = False) -> None:
    """Who made and revoked keys, removed items, and erased users (named by a fingerprint)."""
    with _keys(name, state) as keys:
        entries: list[dict[str, Any]] = keys.audit()
    if as_json:
        print_json({"entries": entries})
        return
    for entry in entries:
        typer.echo(f"{_day(entry['at'])}  {entry['actor']:16}  {entry['action']}  {entry['subject']}")


@contextmanager
def _keys(name: str, state: str | None) -> Iterator[StoredKeys]:
    """The keys of an endpoint, in its database."""
    from rayrec.serving.store.keys import StoredKeys

    with endpoint_database(name, state) as database:
        yield StoredKeys(database)


def _day(milliseconds: int) -> str:
    return datetime.fromtimestamp(milliseconds / 1000, UTC).strftime("%Y-%m-%d %H:%M")
