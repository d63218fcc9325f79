"""MLflow: where artifacts are found. Runs with their lineage, and the registry of Releases with its aliases."""

from __future__ import annotations

import json
import os
import re
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from rayrec.artifacts import Json, home
from rayrec.errors import ModelError, StorageError
from rayrec.recipe import NAME_PATTERN

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion

CHAMPION, CANDIDATE = "champion", "candidate"
RELEASE_TAG, STORAGE_TAG = "rayrec.release", "rayrec.storage"
SIMULATED_TAG, HISTORY_TAG = "rayrec.simulated", "rayrec.champions"
KEY_TAG, PARENT_TAG = "rayrec.key", "mlflow.parentRunId"
PARAM_LENGTH, TAG_LENGTH = 500, 4000
PARAMS_A_CALL, METRICS_A_CALL = 100, 1000
"""MLflow refuses longer values, and more at once."""

HTTP_SETTINGS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
}
"""MLflow's own defaults try for minutes before they say that a server is not there."""


@dataclass(frozen=True)
class RegisteredRelease:
    """A version in the registry.

    Attributes:
        name: The registered model.
        version: Its number.
        digest: The Release it stands for.
        storage: URI of the storage that holds the Release.
        aliases: Such as ``champion``.
        run_id: The MLflow run that made it.
    """

    name: str
    version: int
    digest: str
    storage: str
    aliases: tuple[str, ...]
    run_id: str


def mlflow_name(metric: str) -> str:
    """A metric's name as MLflow takes it: ``ndcg@10`` is ``ndcg_at_10``. The one place where names are mapped."""
    return metric.replace("@", "_at_").replace(">", "over_")


class TrackedRun:
    """A run to log into."""

    def __init__(self, client: MlflowClient, run_id: str) -> None:
        self._client = client
        self.id = run_id

    def params(self, values: Mapping[str, Any]) -> None:
        """Parameters, nested ones with dots between."""
        from mlflow.entities import Param

        flat = [Param(key, str(value)[:PARAM_LENGTH]) for key, value in flatten(values).items()]
        for start in range(0, len(flat), PARAMS_A_CALL):
            self._client.log_batch(self.id, params=flat[start : start + PARAMS_A_CALL])

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Metrics by their recipe names."""
        import time

        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        measured = [Metric(mlflow_name(name), float(value), now, step) for name, value in values.items()]
        for start in range(0, len(measured), METRICS_A_CALL):
            self._client.log_batch(self.id, metrics=measured[start : start + METRICS_A_CALL])

    def tags(self, values: Mapping[str, object]) -> None:
        """Tags."""
        for key, value in values.items():
            self._client.set_tag(self.id, key, str(value))

    def dataset(self, name: str, digest: str, uri: str, context: str, profile: Json) -> None:
        """The Dataset as the run's input."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        entry = Dataset(name, digest, "local", json.dumps({"uri": uri}), profile=json.dumps(profile))
        self._client.log_inputs(self.id, [DatasetInput(entry, [InputTag("mlflow.data.context", context)])])

    def json(self, value: object, file: str) -> None:
        """A JSON artifact."""
        self._client.log_dict(self.id, value, file)  # type: ignore[arg-type]

    def text(self, value: str, file: str) -> None:
        """A text artifact."""
        self._client.log_text(self.id, value, file)

    def file(self, path: Path) -> None:
        """A file as an artifact."""
        self._client.log_artifact(self.id, str(path))

    def figure(self, figure: Figure, file: str) -> None:
        """A plot."""
        self._client.log_figure(self.id, figure, file)


class Tracker:
    """Everything rayrec says to MLflow.

    The server is ``MLFLOW_TRACKING_URI``; by default an SQLite file in `home`.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    @property
    def uri(self) -> str:
        """The tracking URI."""
        return tracking_uri()

    @cached_property
    def client(self) -> MlflowClient:
        """The client. Whatever it cannot do is a StorageError with one message.

        Raises:
            StorageError: The server cannot be reached.
        """
        for setting, value in {"MLFLOW_DISABLE_TELEMETRY": "true", **HTTP_SETTINGS}.items():
            os.environ.setdefault(setting, value)
        import logging

        from mlflow import MlflowClient

        # The first use of an SQLite file migrates it, with a line of log for each of some forty steps.
        logging.getLogger("alembic").setLevel(logging.WARNING)
        logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)
        with _reporting(self.uri), _alone():
            return cast("MlflowClient", _ReportingClient(MlflowClient(self.uri, registry_uri=self.uri), self.uri))

    @cached_property
    def experiment(self) -> str:
        """The id of the experiment called like the recipe, made if need be."""
        found = self.client.get_experiment_by_name(self.name)
        if found:
            return str(found.experiment_id)
        location = (home() / "mlruns" / self.name).as_uri() if self.uri.startswith("sqlite:") else None
        try:
            return str(self.client.create_experiment(self.name, artifact_location=location))
        except StorageError:
            # Another pipeline of this name may have made it just now.
            found = self.client.get_experiment_by_name(self.name)
            if found is None:
                raise
            return str(found.experiment_id)

    @contextmanager
    def run(self, stage: str, parent: TrackedRun | None = None) -> Iterator[TrackedRun]:
        """A run for as long as the block lasts; nested in ``parent``."""
        run = self.begin(stage, parent)
        try:
            yield run
        except BaseException as error:
            # What went wrong is worth more than that MLflow could not be told.
            with suppress(StorageError):
                self.end(run, error)
            raise
        self.end(run)

    def begin(self, stage: str, parent: TrackedRun | None = None) -> TrackedRun:
        """A run that lasts until `end`; nested in ``parent``."""
        tags = {"mlflow.runName": stage, "rayrec.stage": stage}
        if parent:
            tags[PARENT_TAG] = parent.id
        created = self.client.create_run(self.experiment, tags=tags)
        return TrackedRun(self.client, created.info.run_id)

    def end(self, run: TrackedRun, error: BaseException | None = None) -> None:
        """End a run: FINISHED, FAILED with the reason in its tags, or KILLED when the user interrupted it."""
        status = "FINISHED" if error is None else "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED"
        if status == "FAILED":
            run.tags({"rayrec.error": f"{type(error).__name__}: {error}"[:TAG_LENGTH]})
        self.client.set_terminated(run.id, status)

    def take_up(self, run: TrackedRun, key: str) -> None:
        """Mark a run as that of a key, and end as KILLED what a command that died left running under the same one.

        With each of these goes the run it is nested in, and those that are nested in it.
        """
        left = self._running(KEY_TAG, key)
        run.tags({KEY_TAG: key})
        mine = {run.id, self.client.get_run(run.id).data.tags.get(PARENT_TAG)}
        for dead in left:
            nested = [child.info.run_id for child in self._running(PARENT_TAG, dead.info.run_id)]
            around = [dead.data.tags[PARENT_TAG]] if PARENT_TAG in dead.data.tags else []
            still = [run_id for run_id in around if self.client.get_run(run_id).info.status == "RUNNING"]
            for run_id in {dead.info.run_id, *nested, *still} - mine:
                self.client.set_terminated(run_id, "KILLED")

    def _running(self, tag: str, value: str) -> list[Run]:
        """Runs of this experiment that have not ended, by a tag."""
        having = f"tags.`{tag}` = '{value}' and attributes.status = 'RUNNING'"
        return list(self.client.search_runs([self.experiment], having))

    def register(
        self, run: TrackedRun, digest: str, storage: str, reference: Path, description: str, simulated: bool
    ) -> RegisteredRelease:
        """Register a Release as the next version of its name; ``@candidate`` points to it.

        Args:
            run: The run that made it.
            digest: The Release's digest.
            storage: URI of the storage that holds it.
            reference: A folder with what the MLflow flavour loads (`rayrec.inference.pyfunc.write_reference`).
            description: Shown by the registry.
            simulated: Whether its data is simulated.
        """
        if not self.client.search_registered_models(f"name = '{self.name}'"):
            self.client.create_registered_model(self.name)
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) / "release"
            _save_flavour(folder, reference)
            self.client.log_artifacts(run.id, str(folder), "release")
        source = f"{self.client.get_run(run.id).info.artifact_uri}/release"
        tags = {RELEASE_TAG: digest, STORAGE_TAG: storage, SIMULATED_TAG: str(simulated).lower()}
        version = self.client.create_model_version(self.name, source, run.id, tags, description=description)
        self.client.set_registered_model_alias(self.name, CANDIDATE, version.version)
        return find_release(f"{self.name}/{version.version}")

    def releases(self) -> list[RegisteredRelease]:
        """All versions of this name, oldest first. Models that others registered under it are left out."""
        found = [v for v in _versions(self.client, f"name = '{self.name}'") if _is_release(v)]
        if not found:
            return []
        # A search leaves the aliases out; they stand with the registered model.
        aliases = self.client.get_registered_model(self.name).aliases
        return sorted((_registered(version, aliases) for version in found), key=lambda r: r.version)

    def aliased(self, alias: str) -> RegisteredRelease | None:
        """The Release that an alias leads to, if there is one; asked often by whoever follows it."""
        try:
            version = self.client.get_model_version_by_alias(self.name, alias)
        except StorageError:
            # None, or the registry does not answer: who looks for all versions then is told which.
            return None
        return _registered(version, dict.fromkeys(version.aliases, version.version)) if _is_release(version) else None

    def champion(self) -> RegisteredRelease | None:
        """The Release that is served by name, if there is one."""
        return next((release for release in self.releases() if CHAMPION in release.aliases), None)

    def nominate(self, version: int) -> RegisteredRelease:
        """Make a version the candidate."""
        self.client.set_registered_model_alias(self.name, CANDIDATE, str(version))
        return find_release(f"{self.name}/{version}")

    def promote(self, version: int) -> RegisteredRelease:
        """Make a version the champion."""
        release = find_release(f"{self.name}/{version}")
        champions = [number for number in self._champions() if number != version]
        self._set_champions([*champions, version])
        return find_release(f"{release.name}/{version}")

    def rollback(self) -> RegisteredRelease:
        """Make the champion before the present one champion again.

        Raises:
            ModelError: There was none before.
        """
        releases = self.releases()
        existing = {release.version for release in releases}
        earlier = [number for number in self._champions() if number in existing]
        present = next((release.version for release in releases if CHAMPION in release.aliases), None)
        if present in earlier:
            earlier = earlier[: earlier.index(present)]
        if not earlier:
            raise ModelError(
                f"'{self.name}' has no earlier champion to go back to. `rayrec promote NAME/VERSION` sets one."
            )
        self._set_champions(earlier)
        return find_release(f"{self.name}/{earlier[-1]}")

    def delete(self, version: int) -> None:
        """Take a version out of the registry.

        Raises:
            ModelError: It is not there.
        """
        find_release(f"{self.name}/{version}")
        self.client.delete_model_version(self.name, str(version))

    def _champions(self) -> list[int]:
        """Versions that have been champion, the present one last."""
        if not self.client.search_registered_models(f"name = '{self.name}'"):
            return []
        tags = self.client.get_registered_model(self.name).tags
        return [int(number) for number in json.loads(tags.get(HISTORY_TAG, "[]"))]

    def _set_champions(self, versions: list[int]) -> None:
        self.client.set_registered_model_alias(self.name, CHAMPION, str(versions[-1]))
        self.client.set_registered_model_tag(self.name, HISTORY_TAG, json.dumps(versions))


def _is_release(version: ModelVersion) -> bool:
    return RELEASE_TAG in version.tags


def _registered(version: ModelVersion, aliases: Mapping[str, str]) -> RegisteredRelease:
    mine = tuple(alias for alias, number in aliases.items() if str(number) == str(version.version))
    number, tags = int(version.version), version.tags
    return RegisteredRelease(version.name, number, tags[RELEASE_TAG], tags[STORAGE_TAG], mine, str(version.run_id))


def _versions(client: MlflowClient, filter_string: str | None = None) -> Iterator[ModelVersion]:
    """All versions that a search finds, page after page."""
    token = None
    while True:
        page = client.search_model_versions(filter_string, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def _save_flavour(folder: Path, reference: Path) -> None:
    """Write what `mlflow.pyfunc.load_model` reads."""
    import mlflow.pyfunc
    from mlflow.models import ModelSignature
    from mlflow.types import DataType, ParamSchema, ParamSpec

    with warnings.catch_warnings():
        # It asks for an input example, which it would answer by loading the model.
        warnings.simplefilter("ignore", UserWarning)
        mlflow.pyfunc.save_model(
            str(folder),
            # Loaded by the module's name: MLflow would otherwise pickle an instance.
            loader_module="rayrec.inference.pyfunc",
            data_path=str(reference),
            pip_requirements=["rayrec"],
            # MLflow drops parameters that no signature names.
            signature=ModelSignature(params=ParamSchema([ParamSpec("k", DataType.long, 10)])),
        )


def tracking_uri() -> str:
    """``MLFLOW_TRACKING_URI``, by default an SQLite file in `home`."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{home()}/mlflow.db"


def registered_names() -> list[str]:
    """The names of all registered Releases."""
    return sorted({version.name for version in _versions(Tracker("").client) if RELEASE_TAG in version.tags})


def find_release(reference: str) -> RegisteredRelease:
    """A version by reference: ``NAME`` (the champion), ``NAME@ALIAS`` or ``NAME/VERSION``.

    Raises:
        ModelError: There is none; the message says which there are.
    """
    name, alias, version = split_reference(reference)
    found = Tracker(name).aliased(alias) if alias else None
    if found is not None:
        return found
    known = Tracker(name).releases()
    if not known:
        raise ModelError(f"no Release called '{name}' is registered. `rayrec list` shows what there is.")
    wanted = [r for r in known if (r.version == version if version is not None else alias in r.aliases)]
    if not wanted:
        versions = ", ".join(f"{name}/{r.version}" + "".join(f" (@{a})" for a in r.aliases) for r in known)
        raise ModelError(f"'{reference}' is not registered. There is: {versions}.")
    return wanted[0]


def split_reference(reference: str) -> tuple[str, str | None, int | None]:
    """``NAME``, ``NAME@ALIAS`` or ``NAME/VERSION`` as (name, alias, version).

    Raises:
        ModelError: It is none of these.
    """
    found = re.fullmatch(rf"({NAME_PATTERN.strip('^$')})(?:@(.*)|/([0-9]+))?", reference)
    if not found:
        raise ModelError(f"'{reference}' is no reference. Write NAME, NAME@ALIAS or NAME/VERSION, such as movies/3.")
    name, alias, version = found.groups()
    if version is not None:
        return name, None, int(version)
    return name, CHAMPION if alias is None else alias, None


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, keys joined with dots.

    >>> flatten({"a": {"b": 1}})
    {'a.b': 1}
    """
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


class _ReportingClient:
    """MLflow's client, every method of it reporting what goes wrong as one message."""

    def __init__(self, client: MlflowClient, uri: str) -> None:
        self._client = client
        self._uri = uri

    def __getattr__(self, name: str) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            with _reporting(self._uri):
                return getattr(self._client, name)(*args, **kwargs)

        return call


@contextmanager
def _alone() -> Iterator[None]:
    """One process at a time: two that make or migrate the same SQLite file at once break it for each other."""
    import fcntl

    home().mkdir(parents=True, exist_ok=True)
    with (home() / "mlflow.db.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def _reporting(uri: str) -> Iterator[None]:
    """One message when MLflow cannot be used, without the password that its URI may hold."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (ImportError, MlflowException, OSError, SQLAlchemyError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        message = f"MLflow at {uri} cannot be used: {reason} Check MLFLOW_TRACKING_URI."
        raise StorageError(without_passwords(message)) from error


def without_passwords(text: str) -> str:
    """The text with ``USER:PASSWORD@`` cut out of every URI."""
    return re.sub(r"://[^/\s]*@", "://", text)
