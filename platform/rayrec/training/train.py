"""The train stage: Dataset -> bundle, by Ray Train around the plain loop, or in one pass for models that are fitted."""

from __future__ import annotations

import dataclasses
import logging
import math
import os
import re
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import ray
import ray.train
import ray.train.torch
import torch
from ray.train import RunConfig, ScalingConfig
from ray.train.v2._internal.exceptions import WorkerHealthCheckTimeoutError

from rayrec.artifacts import Json
from rayrec.data.dataset import open_dataset
from rayrec.data.user_features import feature_digests
from rayrec.data.views import open_view
from rayrec.errors import ClusterError, ModelError, RayrecError, StorageError
from rayrec.models.base import Fitted, Recommender
from rayrec.models.registry import model_class
from rayrec.recipe import Recipe
from rayrec.training.checkpoint import Checkpoint, Checkpoints, Writer, snapshot
from rayrec.training.feed import feed_for
from rayrec.training.fit import fit_here
from rayrec.training.job import TrainJob, interactions, load, memory_of, publish
from rayrec.training.loop import train
from rayrec.training.preemption import Notice
from rayrec.training.profiling import profiled
from rayrec.training.progress import MEASURED, Metrics, Position
from rayrec.training.reports import reporter
from rayrec.training.run import Run, start
from rayrec.training.steps import DivergedError
from rayrec.training.validation import validated_users, validator
from rayrec.training.world import World

_LOG = logging.getLogger(__name__)

OUT_OF_MEMORY = (
    "training: a worker ran out of GPU memory ({}) Lower training.batch_size, or raise training.accumulate, which "
    "works a step out in so many pieces."
)
NO_VALIDATION = (
    "training: no events are left for validation, so all %d epochs are trained and the last one is kept. To stop at "
    "the best one, set data.split so that there are some; for kind = given, set data.split.validation to a share of "
    "the training events such as 0.1."
)
HUNG = (
    "training: worker {} ({}) hangs: it was asked whether it lives, and did not answer. Run the same command again to "
    "go on from the checkpoint after {}; with training.hung = restart that happens by itself. "
    "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S says how many seconds an answer is waited for."
)
FAILED = (
    "training: the workers failed {} times, last with: {}. Run the same command again to go on from the last "
    "checkpoint."
)
SMALL = 500_000
"""Events of a view from which on a worker is started for it."""
MAX_FAILURES = 3
"""How often workers are started again without a checkpoint in between."""


def train_model(job: TrainJob, run_name: str, on_epoch: Callable[[Metrics], None], resume: bool = True) -> str:
    """Train the recipe's model. Returns the path of its bundle.

    Args:
        job: What to train on what.
        run_name: Names the checkpoints, in ``runs/RUN_NAME`` of the storage.
        on_epoch: Called in this process with each epoch's entry of the history.
        resume: Go on from the checkpoints of an interrupted run of this name; else begin anew.

    Raises:
        ModelError: Training failed, for example with a loss that is no number.
        ClusterError: The cluster has not what the recipe asks for.
    """
    if issubclass(model_class(job.recipe.model.name), Fitted):
        threads = job.recipe.training.threads or int(max(node["Resources"].get("CPU", 0) for node in ray.nodes()))
        # Asked for as one CPU: where something is served, all of a node's would never be free.
        return cast("str", _value(ray.get(ray.remote(num_cpus=1)(fit_here).remote(job, threads))))
    job, checkpoints = with_workers(job), Checkpoints(job.storage, run_name)
    if not resume:
        checkpoints.clear()
    if (begun := checkpoints.newest()) != Position():
        _LOG.warning("training: goes on from the checkpoint after %s", begun)
    with reporter(on_epoch) as reports:
        return cast("str", _value(_until_done(job, checkpoints, reports)))


def _until_done(job: TrainJob, checkpoints: Checkpoints, reports: Any) -> Any:
    """Run the workers, again when they or their nodes die. Returns what rank 0 returned."""
    failures = 0
    while True:
        before = checkpoints.newest()
        try:
            return _fit_by_ray_train(job, checkpoints, reports)
        except ray.train.TrainingFailedError as error:
            hung = _hung(error)
            if hung is not None and job.recipe.training.hung == "stop":
                where = ray.get(reports.where.remote(hung))
                raise ModelError(HUNG.format(hung, where, checkpoints.newest())) from error
            # Machines that come and go all night are no reason to give up while there is progress.
            failures = 1 if checkpoints.newest() > before else failures + 1
            if failures > MAX_FAILURES:
                raise ModelError(FAILED.format(failures, _reason(error))) from error


def _hung(error: ray.train.TrainingFailedError) -> int | None:
    """The rank of a worker that had stopped to answer."""
    failed = error.worker_failures if isinstance(error, ray.train.WorkerGroupError) else {}
    return next((rank for rank, why in failed.items() if isinstance(why, WorkerHealthCheckTimeoutError)), None)


def _reason(error: ray.train.TrainingFailedError) -> str:
    """The last line of what Ray Train says."""
    return re.sub(r"^rayrec\.errors\.\w+: ", "", str(error).strip().splitlines()[-1]).rstrip(".")


def with_workers(job: TrainJob) -> TrainJob:
    """The job with a number of workers, where the recipe leaves it open: small data is done before one has started."""
    settings = job.recipe.training
    if settings.workers is not None:
        return job
    view = open_view(open_dataset(job.storage, *job.dataset_version), job.view)
    small = view["counts"]["events"] < SMALL and settings.gpus != "yes" and not ray.cluster_resources().get("GPU")
    here = ray.get_runtime_context().get_node_id()
    # A head that runs no work is told so by its resources.
    may_work = any(node["NodeID"] == here and node["Resources"].get("CPU") for node in ray.nodes())
    chosen = dataclasses.replace(settings, workers=0 if small and may_work else 1)
    return dataclasses.replace(job, recipe=job.recipe.model_copy(update={"training": chosen}))


def _fit_by_ray_train(job: TrainJob, checkpoints: Checkpoints, reports: Any) -> Any:
    """Run the workers once. Returns what rank 0 returned."""
    with tempfile.TemporaryDirectory(prefix="rayrec-train-") as folder:
        trainer = ray.train.torch.TorchTrainer(
            _train_worker,
            train_loop_config={"job": job, "checkpoints": checkpoints, "reports": reports},
            scaling_config=_scaling(job.recipe),
            run_config=RunConfig(
                name=checkpoints.name,
                # Of no use to us (see rayrec.training.checkpoint), but Ray Train wants to have one.
                storage_path=folder,
            ),
        )
        # Without workers this process trains; a thread could not be interrupted.
        result = _in_background(trainer.fit) if job.recipe.training.workers else trainer.fit()
        return result.return_value


def _in_background(work: Callable[[], Any]) -> Any:
    """Call ``work`` in a thread and wait for it, so that Ctrl-C interrupts the wait at once.

    In the main thread Ray Train takes SIGINT for itself, keeps it afterwards, and ends the process as if all were well.
    What it started belongs to this process and ends with it.
    """
    outcome: Future[Any] = Future()

    def run() -> None:
        try:
            outcome.set_result(work())
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return outcome.result()


def _scaling(recipe: Recipe) -> ScalingConfig:
    """Workers and what each one gets.

    Raises:
        ClusterError: More GPUs are asked for than there are, and none can join.
    """
    settings, workers = recipe.training, recipe.training.workers or 0
    available, fewest = ray.cluster_resources().get("GPU", 0), settings.min_workers or workers
    if settings.gpus == "yes" and available < fewest:
        if not _may_grow():
            raise ClusterError(
                f"training.gpus = 'yes' with {fewest} workers, but the cluster has {available:g} GPUs. "
                "Lower training.workers, or set training.gpus to auto."
            )
        _LOG.warning("training: waiting for GPUs to join, the cluster has %g of %d", available, fewest)
    use_gpu = workers > 0 and (settings.gpus == "yes" or (settings.gpus == "auto" and available >= fewest))
    number = workers if fewest == workers else (fewest, workers)
    return ScalingConfig(num_workers=number, use_gpu=use_gpu)


def _may_grow() -> bool:
    """Whether an autoscaler may add nodes: clusters that have one have several, or a head that runs no work."""
    nodes = [node for node in ray.nodes() if node["Alive"]]
    return len(nodes) > 1 or not nodes[0]["Resources"].get("CPU")


def _value(result: Any) -> Any:
    """What a worker returned; an error that it sent back is raised here."""
    if isinstance(result, RayrecError):
        raise result
    return result


# ---- in the workers


def _train_worker(config: dict[str, Any]) -> str | RayrecError | None:
    """What each Ray Train worker runs. Rank 0 publishes and returns the bundle's path."""
    try:
        return _train_here(config["job"], config["checkpoints"], config["reports"])
    except (StorageError, torch.OutOfMemoryError) as error:
        told = error if isinstance(error, RayrecError) else ModelError(OUT_OF_MEMORY.format(error))
        # One worker may see it alone, and the others would wait for it: raised, it has all of them started again.
        if config["job"].recipe.training.workers:
            raise told from None
        return told
    except RayrecError as error:
        # The same on every worker. Returned, not raised: a restart would only fail again.
        return _with_batch(error, config["checkpoints"]) if isinstance(error, DivergedError) else error


def _with_batch(error: DivergedError, checkpoints: Checkpoints) -> RayrecError:
    """The error for the driver, with where the batch at fault was kept. Every worker keeps it: they write the same."""
    if error.batch is None:
        return ModelError(str(error))
    path = checkpoints.keep_batch(error.batch, error.position)
    return ModelError(
        f"{error} The batch is kept in {checkpoints.storage.url(path)}. "
        "`training.nonfinite = skip` passes over such steps and counts them."
    )


def _train_here(job: TrainJob, checkpoints: Checkpoints, reports: Any) -> str | None:
    recipe, context = job.recipe, ray.train.get_context()
    world = World(context.get_world_rank(), context.get_world_size(), ray.train.torch.get_device())
    position = _newest(checkpoints, world)
    threads = recipe.training.threads or max(1, _cores() // context.get_local_world_size())
    # Sums depend on the number of threads: workers that were started again elsewhere keep to the first choice.
    (threads,) = _of_first(world, threads)
    threads = ray.get(reports.begin.remote(world.rank, _whereabouts(), position, threads))
    torch.set_num_threads(threads)
    sequences, dataset = load(job, memory_of(recipe, context.get_local_world_size()))
    if world.rank == 0 and sequences.empty is not np.empty:
        _LOG.warning("training: the view does not fit into training.memory_mb: read from %s", tempfile.gettempdir())
    torch.manual_seed(recipe.training.seed)
    model = model_class(recipe.model.name)(recipe.model.config, len(sequences.item_keys))
    observed = interactions(job, sequences)

    def warm(model: Recommender) -> None:
        if job.parent and position == Position():
            job.parent.give(model, sequences.item_keys, feature_digests(dataset, job.view, model.widths))

    run = start(model, observed, recipe.training, world, warm)
    best = _Best(snapshot(model))
    if position != Position():
        best.state = checkpoints.load(run, position)
    feed = feed_for(model, observed, recipe.training, world.part_overhead)
    users = validated_users(job, dataset, sequences)
    if world.rank == 0 and users is None and job.epochs is None:
        _LOG.warning(NO_VALIDATION, recipe.training.epochs)
    validate = validator(recipe, users, world)
    with Writer(checkpoints) as writer, _profiled(run, job, checkpoints) as run:
        train(
            run,
            feed,
            validate,
            lambda run: _after_epoch(run, best, writer, reports),
            job.epochs,
            lambda run: _amid_epoch(run, best, writer),
            Notice(world).given,
        )
    if world.rank:
        return None
    model.load_state_dict(best.state)
    return publish(job, model, sequences, dataset, _training_metrics(run, threads))


@contextmanager
def _profiled(run: Run, job: TrainJob, checkpoints: Checkpoints) -> Iterator[Run]:
    """The run, if so asked for with some steps of worker 0 recorded into the storage."""
    if not job.profile or run.world.rank:
        yield run
        return
    with tempfile.TemporaryDirectory(prefix="rayrec-profile-") as folder:
        trace = Path(folder, "profile.json.gz")
        with profiled(run, trace) as recorded:
            yield recorded
        if trace.exists():
            job.storage.replace(checkpoints.profile, trace.read_bytes())


def _newest(checkpoints: Checkpoints, world: World) -> Position:
    """Where the newest checkpoint stands that worker 0 sees."""
    position = checkpoints.newest()
    return Position(*_of_first(world, position.epoch, position.step))


def _of_first(world: World, *values: int) -> list[int]:
    """The values that worker 0 has, on all."""
    return [int(value) for value in world.sum([float(value) if world.rank == 0 else 0.0 for value in values])]


@dataclass
class _Best:
    """The best state so far."""

    state: dict[str, torch.Tensor]


def _whereabouts() -> str:
    """This process, for who looks for it."""
    return f"process {os.getpid()} on {ray.util.get_node_ip_address()}"


def _cores() -> int:
    """Cores this process may use."""
    # macOS has no affinity.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _after_epoch(run: Run, best: _Best, writer: Writer, reports: Any) -> None:
    """Keep the best weights, write a checkpoint, tell whoever watches. Every worker reports equally often."""
    if run.progress.best_epoch == run.progress.epoch:
        best.state = snapshot(run.judged)
    entry = run.progress.history[-1]
    if run.world.rank == 0:
        writer.save(Checkpoint.of(run, best.state))
        ray.get(reports.add.remote(entry))
    ray.train.report(entry)


def _amid_epoch(run: Run, best: _Best, writer: Writer) -> None:
    """Write a checkpoint."""
    if run.world.rank == 0:
        writer.save(Checkpoint.of(run, best.state))


def _training_metrics(run: Run, threads: int) -> Json:
    """What the bundle remembers of its training; no times, so that equal training gives equal bundles."""
    progress, made_by = run.progress, {"threads": threads, "workers": run.world.size}
    history = [{key: value for key, value in entry.items() if key not in MEASURED} for entry in progress.history]
    best = progress.best if math.isfinite(progress.best) else None
    return {"best_epoch": progress.best_epoch, "best": best, **made_by, "history": history}
