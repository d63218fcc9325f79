"""`rayrec init` and `rayrec data`: argument handling for data of one's own, and for public data sets."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from rayrec.cli_shared import StateOption, endpoint_database, write_page
from rayrec.errors import RecipeError

if TYPE_CHECKING:
    from rayrec.artifacts import Json
    from rayrec.data.dataset import Dataset

data_app = typer.Typer(help="Public data sets, and data of your own.", no_args_is_help=True)

DatasetArgument = Annotated[str, typer.Argument(metavar="NAME", help="The Dataset: the recipe's name.")]


def init(
    log: Annotated[Path, typer.Argument(help="Your log: a file or folder.")],
    items: Annotated[Path | None, typer.Option(help="A table of items, with titles and categories.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the recommender; by default the file's.")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Where to write it; by default to stdout.")] = None,
) -> None:
    """Write a commented recipe for your own files, from their header."""
    from rayrec.data.starter import starter_recipe

    text = starter_recipe(log, items, name, out.parent if out else Path())
    if out is None:
        typer.echo(text, nl=False)
    elif out.exists():
        raise RecipeError(f"{out}: there is a file already. Remove it, or choose another with --out.")
    else:
        write_page(out, text)
        typer.echo(f"wrote {out}; now: rayrec run {out}", err=True)


@data_app.command("get")
def data_get(name: Annotated[str, typer.Argument(help="movielens-100k, movielens-1m or simulated.")]) -> None:
    """Fetch a public data set, once."""
    from rayrec.artifacts import Storage
    from rayrec.data.files import provide_sample

    storage = Storage.open()
    folder = provide_sample(name, storage)
    for notice in ("LICENSE.txt", "SIMULATED.txt"):
        if storage.exists(f"sources/{name}/{notice}"):
            typer.echo(storage.read(f"sources/{name}/{notice}").decode(), err=True)
    typer.echo(folder)


@data_app.command("export")
def data_export(
    name: DatasetArgument,
    out: Annotated[Path, typer.Option("--out", help="The folder to write to.")],
    view: Annotated[str | None, typer.Option(help="The view; by default the one written last.")] = None,
    fold: Annotated[list[str] | None, typer.Option(help="Only these folds; by default train. May be repeated.")] = None,
    values: Annotated[
        Literal["ones", "counts", "sum", "last"], typer.Option(help="What stands where a user has events on an item.")
    ] = "ones",
) -> None:
    """Write a view as a SciPy sparse matrix (CSR) of users by items, with the keys of both."""
    from rayrec.data.export import export_csr
    from rayrec.data.views import latest_view

    dataset = _dataset(name)
    export_csr(dataset, view or latest_view(dataset), out, fold or ["train"], values)
    typer.echo(f"wrote interactions.npz, users.parquet and items.parquet to {out}", err=True)


@data_app.command("report")
def data_report(
    name: DatasetArgument,
    out: Annotated[Path | None, typer.Option("--out", help="Where to write it; by default beside the Dataset.")] = None,
) -> None:
    """Write the report on the latest version of a Dataset: one HTML page. Prints where it is."""
    from rayrec.data.dataset import report_path
    from rayrec.data.report import publish_report
    from rayrec.data.views import latest_view

    dataset = _dataset(name)
    page = publish_report(dataset, latest_view(dataset))
    if out is not None:
        write_page(out, page)
    typer.echo(str(out or dataset.storage.url(report_path(dataset.name, dataset.number))))


@data_app.command("erase")
def data_erase(
    name: DatasetArgument,
    user: Annotated[str | None, typer.Option("--user", help="The key, as in the logs.")] = None,
    queued: Annotated[bool, typer.Option("--queued", help="Everybody whom the endpoint was asked to forget.")] = False,
    state: StateOption = None,
) -> None:
    """Forget users: rewrite what holds them, in every version. Prints the receipt as JSON; of `--queued` a list."""
    from rayrec.artifacts import Storage
    from rayrec.data.erasure import erase_user

    if queued == (user is not None):
        raise RecipeError("give either --user KEY or --queued.")
    receipts = _carried_out(name, state) if user is None else erase_user(Storage.open(), name, user)
    sys.stdout.write(json.dumps(receipts, indent=1) + "\n")
    if not receipts:
        typer.echo("nothing is queued", err=True)
        return
    typer.echo(
        "the logs themselves, backups and the models trained before are not changed: see `left` in the receipt",
        err=True,
    )


def _carried_out(name: str, state: str | None) -> list[Json]:
    """Receipts of what an endpoint has queued, each kept in its database as soon as it is there."""
    from dataclasses import asdict

    from rayrec.artifacts import Storage
    from rayrec.serving.forgetting import carry_out

    with endpoint_database(name, state) as database:
        return [asdict(erasure) for erasure in carry_out(Storage.open(), name, database)]


def _dataset(name: str) -> Dataset:
    from rayrec.artifacts import Storage
    from rayrec.data.dataset import open_dataset

    return open_dataset(Storage.open(), name)
