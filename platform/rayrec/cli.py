"""`rayrec`: a sub-command a stage. Argument handling only."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from rayrec import __version__
from rayrec.cli_data import data_app, init
from rayrec.cli_evaluation import compare, cross_validate
from rayrec.cli_keys import keys_app
from rayrec.cli_recommend import recommend
from rayrec.cli_shared import (
    AppendOption,
    DataOption,
    JsonOption,
    RecipeArgument,
    ResumeOption,
    SetOption,
    Terminated,
    VerboseOption,
    cluster,
    load,
    print_json,
    terminate,
)
from rayrec.cli_tuning import tune
from rayrec.errors import RayrecError

if TYPE_CHECKING:
    from rayrec.artifacts import Json
    from rayrec.pipeline import Pipeline
    from rayrec.recipe import Recipe

USAGE_ERROR = 2
INTERRUPTED = 130
TERMINATED = 143


class Commands(TyperGroup):
    """Bad input is one message and exit code 2, never a traceback; Ctrl-C and SIGTERM say how to go on."""

    def invoke(self, ctx: Any) -> Any:
        """Run the sub-command."""
        try:
            return super().invoke(ctx)
        except RayrecError as error:
            typer.echo(f"error: {error}", err=True)
            raise typer.Exit(USAGE_ERROR) from error
        except KeyboardInterrupt as error:
            typer.echo("interrupted. The same command again goes on where this one stopped.", err=True)
            raise typer.Exit(TERMINATED if isinstance(error, Terminated) else INTERRUPTED) from error


app = typer.Typer(
    name="rayrec",
    cls=Commands,
    help="From interaction logs to a live recommendation endpoint.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.add_typer(data_app, name="data")
app.add_typer(keys_app, name="keys")
app.command()(init)
app.command()(compare)
app.command()(cross_validate)
app.command()(tune)
app.command()(recommend)

# ---- the pipeline

ProfileOption = Annotated[
    Path | None,
    typer.Option(metavar="FILE.json.gz", help="Record some steps into this file, for https://ui.perfetto.dev."),
]


@app.command()
def run(
    recipe: RecipeArgument,
    overrides: SetOption = None,
    data: DataOption = None,
    serve: Annotated[bool, typer.Option("--serve", help="Serve the champion afterwards, until Ctrl-C.")] = False,
    resume: ResumeOption = True,
    append: AppendOption = False,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Prepare, train, evaluate and register; what has not changed is skipped."""
    from rayrec import pipeline
    from rayrec.terminal import RunDisplay, show_result

    loaded, storage, files = load(recipe, overrides, data)
    with cluster(storage, verbose, files) as stdout:
        with RunDisplay(loaded) as display:
            result = pipeline.run(loaded, storage, display, resume, append)
        with redirect_stdout(stdout):
            if as_json:
                print_json(result.to_json())
            else:
                show_result(result)
            stdout.flush()
        if serve:
            _serve_until_signal(loaded.name, loaded.serving, as_json)


@app.command()
def prepare(
    recipe: RecipeArgument,
    overrides: SetOption = None,
    data: DataOption = None,
    append: AppendOption = False,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Turn logs into a Dataset."""
    _run_stages(recipe, overrides, data, True, as_json, verbose, lambda p: p.prepare(), append)


@app.command()
def train(
    recipe: RecipeArgument,
    overrides: SetOption = None,
    data: DataOption = None,
    resume: ResumeOption = True,
    profile: ProfileOption = None,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Train the recipe's model (and prepare, where that is not done)."""
    if profile and not profile.absolute().parent.is_dir():
        raise typer.BadParameter(f"there is no folder {profile.absolute().parent}", param_hint="--profile")

    places: list[str] = []

    def stages(pipeline: Pipeline) -> None:
        pipeline.profile = profile
        trained = pipeline.train(*pipeline.prepare())
        places.append(pipeline.storage.url(trained.served["main"]))

    _run_stages(recipe, overrides, data, resume, as_json, verbose, stages)
    if not as_json:
        typer.echo(f"Model     {places[0]}")
        if profile:
            typer.echo(f"Profile   {profile}")


@app.command()
def evaluate(
    recipe: RecipeArgument,
    overrides: SetOption = None,
    data: DataOption = None,
    resume: ResumeOption = True,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Measure the recipe's model (and prepare and train, where that is not done)."""
    from rayrec.terminal import show_quality

    measured: list[tuple[Recipe, Json]] = []

    def stages(pipeline: Pipeline) -> None:
        dataset, view = pipeline.prepare()
        metrics = pipeline.evaluate(dataset, view, pipeline.train(dataset, view))
        measured.append((pipeline.recipe, metrics))

    _run_stages(recipe, overrides, data, resume, as_json, verbose, stages)
    if not as_json:
        show_quality(*measured[0])


# ---- recipes


@app.command()
def recipes(
    name: Annotated[str | None, typer.Argument(help="Print this recipe, every default written out.")] = None,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON Schema of recipes.")] = False,
) -> None:
    """List the packaged recipes."""
    from rayrec.recipe_files import json_schema, load_recipe, packaged_recipes, to_yaml

    if schema:
        print_json(json_schema())
    elif name:
        typer.echo(to_yaml(load_recipe(name)), nl=False)
    else:
        for packaged, summary in packaged_recipes().items():
            typer.echo(f"{packaged:<20} {summary}")


# ---- releases


@app.command()
def promote(
    reference: Annotated[str, typer.Argument(metavar="NAME[/VERSION]", help="By default the candidate.")],
) -> None:
    """Make a Release the champion, which is served by name."""
    from rayrec.tracking import CANDIDATE, Tracker, find_release

    found = find_release(reference if "/" in reference or "@" in reference else f"{reference}@{CANDIDATE}")
    release = Tracker(found.name).promote(found.version)
    typer.echo(f"{release.name}/{release.version} is the champion")


@app.command()
def rollback(
    reference: Annotated[str, typer.Argument(metavar="NAME[/VERSION]", help="By default to the champion before.")],
) -> None:
    """Go back to an earlier champion."""
    from rayrec.tracking import Tracker, find_release

    tracker = Tracker(reference.partition("/")[0])
    release = tracker.promote(find_release(reference).version) if "/" in reference else tracker.rollback()
    typer.echo(f"{release.name}/{release.version} is the champion")


@app.command("list")
def list_all(as_json: JsonOption = False) -> None:
    """List Datasets, models and Releases."""
    from rayrec.artifacts import Storage
    from rayrec.inventory import inventory
    from rayrec.terminal import show_inventory

    found = inventory(Storage.open())
    if as_json:
        print_json(found)
    else:
        show_inventory(found)


@app.command()
def gc(
    keep: Annotated[
        int, typer.Option(min=0, help="Newest Releases to keep of each name, besides those with an alias.")
    ] = 5,
    older_than: Annotated[float, typer.Option(min=0, help="Hours that garbage must be old.")] = 24.0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
) -> None:
    """Remove what nothing refers to."""
    from rayrec.artifacts import Storage
    from rayrec.inventory import collect_garbage, find_garbage

    storage = Storage.open()
    garbage = find_garbage(storage, keep, older_than)
    for name, version in garbage.versions:
        typer.echo(f"{name}/{version}")
    for path in garbage.paths:
        typer.echo(path)
    if not dry_run:
        collect_garbage(storage, garbage)
    verb = "would be removed" if dry_run else "removed"
    typer.echo(f"{len(garbage.paths)} artifacts and {len(garbage.versions)} Releases {verb}", err=True)


# ---- serving and clusters


@app.command()
def serve(
    reference: Annotated[str, typer.Argument(metavar="NAME", help="NAME, NAME@ALIAS or NAME/VERSION.")],
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="Port to listen on.")] = None,
    verbose: VerboseOption = False,
) -> None:
    """Serve a Release over HTTP until Ctrl-C. NAME and NAME@ALIAS are followed: promote another, and it answers."""
    from rayrec.artifacts import Storage
    from rayrec.inference.release import open_release
    from rayrec.recipe_serving import Serving
    from rayrec.serving.server import require_keys
    from rayrec.tracking import find_release

    registered = find_release(reference)
    storage = Storage.open(registered.storage)
    settings = Serving(**open_release(storage, registered.digest).content["serving"])
    given = {key: value for key, value in {"host": host, "port": port}.items() if value is not None}
    require_keys(settings.model_copy(update=given), registered.name)
    # Whoever serves need not be allowed to write there.
    release = storage.url(f"releases/{registered.digest}.json")
    with cluster(None, verbose, [(release, None)]):
        _serve_until_signal(reference, settings.model_copy(update=given), False)


@app.command()
def start(
    port: Annotated[int, typer.Option(help="Port of the cluster.")] = 6379,
    dashboard_port: Annotated[int, typer.Option(help="Port of Ray's dashboard, on localhost.")] = 8265,
) -> None:
    """Start a Ray cluster on this machine that stays, for the commands that follow."""
    from rayrec.cluster import start_standing

    state = start_standing(port, dashboard_port)
    typer.echo(f"a cluster is running at {state['address']}, dashboard {state['dashboard']}; `rayrec stop` ends it")


@app.command()
def stop() -> None:
    """End the cluster that `rayrec start` started."""
    from rayrec.cluster import stop_standing

    typer.echo(f"ended the cluster at {stop_standing()['address']}")


@app.command()
def demo(
    simulated: Annotated[bool, typer.Option("--simulated", help="Simulated logs instead of MovieLens 100K.")] = False,
) -> None:
    """The whole way once: MovieLens 100K to live answers, everything shut down at the end."""
    from rayrec.demo import run_demo

    run_demo(simulated)


@app.command()
def version() -> None:
    """Print the version."""
    typer.echo(__version__)


# ---- shared


def _run_stages(
    recipe: str,
    overrides: list[str] | None,
    data: str | None,
    resume: bool,
    as_json: bool,
    verbose: bool,
    stages: Callable[[Pipeline], object],
    append: bool = False,
) -> None:
    from rayrec.pipeline import Pipeline
    from rayrec.terminal import RunDisplay

    loaded, storage, files = load(recipe, overrides, data)
    with (
        cluster(storage, verbose, files),
        RunDisplay(loaded) as display,
        Pipeline(loaded, storage, display, resume, append) as pipeline,
    ):
        stages(pipeline)
    if as_json:
        outcomes = {name: outcome.summary() | outcome.output for name, outcome in pipeline.outcomes.items()}
        print_json({"recipe": loaded.name, "simulated": loaded.simulated, "stages": outcomes})


def _serve_until_signal(reference: str, settings: Any, quiet: bool) -> None:
    from rayrec.artifacts import Storage
    from rayrec.cluster import has_fast_serve
    from rayrec.serving.server import has_keys, serving, until_signal
    from rayrec.tracking import find_release

    registered = find_release(reference)
    if os.environ.get("RAY_SERVE_ENABLE_HA_PROXY") != "0" and not has_fast_serve():
        typer.echo(
            "warning: this cluster was started without Ray Serve's HAProxy, so it may answer more slowly. "
            "`rayrec start` sets it up; for a cluster of your own see docs/serving.md.",
            err=True,
        )
    storage = Storage.open(registered.storage)
    follow = None if "/" in reference else reference
    with until_signal() as wait, serving(storage, registered.digest, settings, follow) as url:
        typer.echo(f"serving {registered.name}/{registered.version} at {url}/docs (Ctrl-C ends it)", err=True)
        if not has_keys(settings, registered.name):
            make = f"`rayrec keys create {registered.name}` makes the first one"
            typer.echo(f"only this machine may ask, without a key; {make}", err=True)
        wait()
        typer.echo("ending: requests under way are finished first", err=True)


def main() -> None:
    """Run the command line."""
    from rayrec.cluster import prepare_environment

    prepare_environment()
    signal.signal(signal.SIGTERM, terminate)
    # Ray and MLflow print to stdout now and then; with --json only the one object may go there.
    real = os.dup(1)
    os.dup2(2, 1)
    sys.stdout = os.fdopen(real, "w", encoding="utf-8")
    app()


if __name__ == "__main__":
    main()
