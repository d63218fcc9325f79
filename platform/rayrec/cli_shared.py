"""What the sub-commands share: arguments, reading recipes, the cluster, and what is printed."""

from __future__ import annotations

import json
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TextIO

import typer

from rayrec.errors import RecipeError

if TYPE_CHECKING:
    from rayrec.artifacts import Json, Storage
    from rayrec.recipe import Recipe
    from rayrec.recipe_data import TableSource
    from rayrec.serving.store.database import Database

    Files = Sequence[tuple[str, TableSource | None]]

RecipeArgument = Annotated[str, typer.Argument(help="A recipe: a YAML file, or the name of a packaged one.")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key of the recipe.")
]
DataOption = Annotated[str | None, typer.Option("--data", help="`simulated` replaces the recipe's data.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout, all else on stderr.")]
VerboseOption = Annotated[bool, typer.Option("--verbose", help="Show what the workers print.")]
AppendOption = Annotated[bool, typer.Option("--append", help="Only add new files to the Dataset, where there is one.")]
StateOption = Annotated[
    str | None, typer.Option("--state", help="URL of the endpoint's database; by default that of serving.state.")
]
ResumeOption = Annotated[
    bool, typer.Option("--resume/--no-resume", help="Go on from the checkpoints of an interrupted training.")
]


HEAD = 1 << 16
"""Bytes of a file that say who wrote it."""


class Terminated(KeyboardInterrupt):
    """SIGTERM, which `ray job stop` and service managers send."""


@contextmanager
def endpoint_database(name: str, state: str | None) -> Iterator[Database]:
    """The database of a recommender's endpoint, where ``state`` or else its Release says that it is."""
    from rayrec.serving.store.database import Database
    from rayrec.serving.store.store import state_url

    with closing(Database(state_url(state or _state_of(name), name))) as database:
        yield database


def _state_of(name: str) -> str | None:
    """Where the champion, or else the newest Release, of a recommender keeps its events."""
    from rayrec.artifacts import Storage
    from rayrec.inference.release import open_release
    from rayrec.tracking import find_release

    registered = find_release(name)
    content = open_release(Storage.open(registered.storage), registered.digest).content
    state: str | None = content["serving"].get("state")
    return state


def load(recipe: str, overrides: list[str] | None, data: str | None) -> tuple[Recipe, Storage, Files]:
    """The recipe, its storage, and a file of each of its sources, with that source."""
    from rayrec.artifacts import Storage
    from rayrec.data.files import check_sources
    from rayrec.recipe_files import load_recipe

    if data not in {None, "simulated"}:
        raise RecipeError(f"--data {data}: the only data that can take the recipe's place is 'simulated'.")
    loaded = load_recipe(recipe, overrides or [], data == "simulated")
    storage = Storage.open(loaded.storage)
    files = check_sources(loaded, storage)
    tables = [*loaded.data.sources, *filter(None, [loaded.data.items, loaded.data.users])]
    return loaded, storage, [(uri, tables[source]) for source, uri in {f.source: f.uri for f in files}.items()]


@contextmanager
def cluster(storage: Storage | None, verbose: bool, files: Files = ()) -> Iterator[TextIO]:
    """Connected to Ray, which prints to stdout now and then: that goes to stderr. Gives the real stdout."""
    from rayrec.cluster import connected
    from rayrec.terminal import waiting

    real = sys.stdout
    with ExitStack() as stack:
        stack.enter_context(redirect_stdout(sys.stderr))
        with waiting("connecting to Ray"):
            stack.enter_context(connected(storage, files, verbose))
        # Ray has put its own handler there, which ends the process with no word on how to go on.
        stack.callback(signal.signal, signal.SIGTERM, signal.signal(signal.SIGTERM, terminate))
        yield real


def terminate(*_: object) -> None:
    """What SIGTERM does."""
    raise Terminated


def print_json(value: Json) -> None:
    """The one JSON object of ``--json``."""
    sys.stdout.write(json.dumps(value, indent=1) + "\n")


def check_output(path: Path, option: str, ours: Callable[[str], bool]) -> None:
    """See that a file can be written, before the work that goes into it.

    Args:
        path: The file.
        option: That names it.
        ours: Whether a file that begins with this text may be overwritten.

    Raises:
        RecipeError: There is no folder for it, or something else stands there.
    """
    try:
        if not path.absolute().parent.is_dir():
            raise RecipeError(
                f"{option} {path}: there is no folder {path.absolute().parent}. Make it, or choose another."
            )
        if not path.exists():
            tempfile.TemporaryFile(dir=path.absolute().parent).close()
        elif not path.is_file() or not ours(_head(path)):
            raise RecipeError(f"{option} {path}: is there already, and was not written by rayrec. Choose another file.")
        else:
            path.open("r+").close()
    except OSError as error:
        raise RecipeError(f"{option} {path}: cannot be written: {error.strerror}. Choose another file.") from error


def _head(path: Path) -> str:
    with path.open("rb") as file:
        return file.read(HEAD).decode(errors="replace")


def write_page(out: Path, text: str, option: str = "--out") -> None:
    """Write the file that an option names."""
    try:
        out.write_text(text, encoding="utf-8")
    except OSError as error:
        raise RecipeError(f"{option} {out}: cannot be written: {error.strerror}. Choose another file.") from error
