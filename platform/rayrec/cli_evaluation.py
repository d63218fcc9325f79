"""`rayrec compare` and `rayrec cross-validate`: argument handling."""

from __future__ import annotations

from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated

import typer

from rayrec.cli_shared import (
    DataOption,
    JsonOption,
    RecipeArgument,
    SetOption,
    VerboseOption,
    cluster,
    load,
    print_json,
    write_page,
)
from rayrec.errors import RecipeError


def compare(
    references: Annotated[
        list[str], typer.Argument(metavar="NAME NAME...", help="Two or more: NAME, NAME@ALIAS or NAME/VERSION.")
    ],
    metric: Annotated[
        list[str] | None, typer.Option(help="Only this accuracy metric, such as ndcg@10. May be repeated.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Write the page to this HTML file, too.")] = None,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Measure Releases on the same users, and test which differences are not luck."""
    from rayrec.comparison import compare_releases, entrants
    from rayrec.terminal import errors, show_comparison, waiting

    if out is not None and not out.absolute().parent.is_dir():
        raise RecipeError(f"--out {out}: there is no folder {out.absolute().parent}. Make it, or choose another file.")
    found = entrants(references)
    with cluster(found[0].release.storage, verbose) as stdout, waiting("measuring"):
        comparison, page = compare_releases(found, metric or ())
    if out is not None:
        write_page(out, page)
    for warning in comparison.warnings:
        errors.print(f"warning: {warning}", markup=False)
    with redirect_stdout(stdout):
        if as_json:
            print_json(comparison.to_json())
        else:
            show_comparison(comparison)


def cross_validate(
    recipe: RecipeArgument,
    folds: Annotated[int, typer.Option(min=3, help="Into how many parts the events are drawn.")] = 5,
    overrides: SetOption = None,
    data: DataOption = None,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Train and measure the recipe's model on every fold in turn; nothing is registered."""
    from rayrec.cross_validation import cross_validate as validate
    from rayrec.terminal import RunDisplay, errors, show_cross_validation

    loaded, storage, files = load(recipe, overrides, data)
    with cluster(storage, verbose, files) as stdout, RunDisplay(loaded) as display:
        found = validate(
            loaded, storage, display, folds, lambda fold: errors.print(f"[bold]fold {fold + 1} of {folds}[/]")
        )
    with redirect_stdout(stdout):
        if as_json:
            print_json(found.to_json())
        else:
            show_cross_validation(found)
