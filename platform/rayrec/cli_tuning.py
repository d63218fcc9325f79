"""`rayrec tune`: argument handling."""

from __future__ import annotations

from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated, Any

import typer

from rayrec.cli_shared import (
    DataOption,
    JsonOption,
    RecipeArgument,
    SetOption,
    VerboseOption,
    check_output,
    cluster,
    load,
    print_json,
    write_page,
)
from rayrec.errors import RecipeError

SpaceOption = Annotated[
    str, typer.Option("--space", metavar="FILE", help="What is searched: a YAML file, or one that comes with rayrec.")
]
MetricOption = Annotated[
    list[str] | None,
    typer.Option(help="What is to be as good as possible. Repeated: several at once, such as ndcg@10 and p95_ms."),
]
ResumeOption = Annotated[
    bool, typer.Option("--resume/--no-resume", help="Go on with an interrupted sweep, or add trials to a finished one.")
]


def tune(
    recipe: RecipeArgument,
    space: SpaceOption = "learning_rate_batch_size",
    trials: Annotated[int | None, typer.Option(help="How many, the recipe as it is among them.")] = None,
    max_time: Annotated[str | None, typer.Option(help="Stop after so long, such as 15m or 2h.")] = None,
    metric: MetricOption = None,
    constraint: Annotated[
        list[str] | None, typer.Option(help="What the best must fulfil, such as 'p95_ms <= 5'. May be repeated.")
    ] = None,
    algorithm: Annotated[str | None, typer.Option(help="grid, random, tpe or nsga2.")] = None,
    scheduler: Annotated[str | None, typer.Option(help="none, asha, median, hyperband or pbt.")] = None,
    confirm: Annotated[
        int | None, typer.Option(help="Train so many of the best, and the recipe as it is, with new seeds.")
    ] = None,
    parallel: Annotated[int | None, typer.Option(help="Trials at a time.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of what the algorithm draws.")] = None,
    resume: ResumeOption = True,
    out: Annotated[Path, typer.Option("--out", help="Where the best recipe goes.")] = Path("best.yaml"),
    report: Annotated[Path | None, typer.Option("--report", help="Write the report to this HTML file, too.")] = None,
    overrides: SetOption = None,
    data: DataOption = None,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Search the best settings of a recipe; the best trial becomes the candidate."""
    from rayrec.data.page import GENERATOR
    from rayrec.sweep import HEADER
    from rayrec.sweep import tune as sweep
    from rayrec.terminal_sweep import SweepDisplay, show_sweep
    from rayrec.tuning.options import load_search

    given: dict[str, Any] = {"trials": trials, "max_time": max_time, "metric": metric, "constraints": constraint}
    given |= {"algorithm": algorithm, "scheduler": scheduler, "confirm": confirm, "parallel": parallel, "seed": seed}
    check_output(out, "--out", lambda text: text.startswith(HEADER))
    if report is not None:
        check_output(report, "--report", lambda text: GENERATOR in text)
        if report.resolve() == out.resolve():
            raise RecipeError(f"--report {report}: is what --out names, too. Choose another file.")
    loaded, storage, files = load(recipe, overrides, data)
    chosen = load_search(space, {key: value for key, value in given.items() if value is not None}, loaded)
    with cluster(storage, verbose, files) as stdout:
        with SweepDisplay(loaded, chosen) as display:
            result = sweep(loaded, chosen, storage, display, resume)
        write_page(out, result.yaml)
        if report is not None:
            write_page(report, result.page, "--report")
        with redirect_stdout(stdout):
            if as_json:
                print_json(result.to_json() | {"best_recipe": str(out)})
            else:
                show_sweep(result, out, report)
            stdout.flush()
