"""Starting and ending the endpoint."""

from __future__ import annotations

import ipaddress
import logging
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

import ray
from ray import serve
from ray.serve.schema import LoggingConfig

from rayrec.artifacts import Storage
from rayrec.errors import ClusterError, RecipeError
from rayrec.inference.release import open_release
from rayrec.recipe_serving import Serving
from rayrec.serving import tracing
from rayrec.serving.deployment import APP_NAME, build_application
from rayrec.serving.store.database import Database
from rayrec.serving.store.keys import StoredKeys
from rayrec.serving.store.store import state_url

CONTROLLER = "SERVE_CONTROLLER_ACTOR"


@contextmanager
def serving(storage: Storage, release: str, settings: Serving, follow: str | None = None) -> Iterator[str]:
    """The endpoint for as long as the block lasts, on the connected cluster. Gives its address.

    Args:
        storage: Where the Release lives.
        release: Its digest.
        settings: The recipe's `serving` section.
        follow: NAME or NAME@ALIAS that leads to it now; when it leads elsewhere, that is served.

    Raises:
        ModelError: The Release is damaged.
        ClusterError: The endpoint does not become healthy; the cause is in the message.
        RecipeError: Others than this machine could reach it, and there are no API keys; or what sends spans is missing.
    """
    pinned = open_release(storage, release)
    for role in pinned.content["models"]:
        # Checked here as well: a replica that cannot load would be started again and again.
        pinned.bundle(role)
    pinned.indexes()
    require_keys(settings, pinned.content["name"])
    _require_room(settings)
    if settings.tracing:
        tracing.exporter()
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    # Of requests, replicas log a line of their own.
    quiet = LoggingConfig(log_level="WARNING", enable_access_log=False, encoding=settings.log_format.upper())
    try:
        try:
            serve.start(http_options={"host": settings.host, "port": settings.port}, logging_config=quiet)
            serve.run(build_application(storage, release, settings, follow), name=APP_NAME, logging_config=quiet)
        except RuntimeError as error:
            raise ClusterError(f"the endpoint did not start: {_cause(error)}") from error
        yield f"http://{settings.host}:{settings.port}"
    finally:
        # Replicas finish what they are answering, then end.
        serve.shutdown()


@contextmanager
def until_signal() -> Iterator[Callable[[], object]]:
    """SIGINT and SIGTERM, while the block lasts, end a wait instead of the process. Gives the wait."""
    asked = threading.Event()
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, lambda *_: asked.set()) for number in numbers]
    try:
        yield asked.wait
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def has_keys(settings: Serving, name: str) -> bool:
    """Whether whoever asks the endpoint of a recommender needs an API key."""
    with closing(Database(state_url(settings.state, name))) as database:
        return StoredKeys(database).ring().required


def require_keys(settings: Serving, name: str) -> None:
    """Refuse to let everybody in.

    Raises:
        RecipeError: Others than this machine could reach the endpoint, and there are no API keys.
    """
    try:
        local = settings.host == "localhost" or ipaddress.ip_address(settings.host).is_loopback
    except ValueError:
        local = False
    if not local and not has_keys(settings, name):
        raise RecipeError(
            f"serving.host = {settings.host}: other machines could read and write without an API key. "
            f"Make one with `rayrec keys create {name} --scope read --scope write`, or listen on 127.0.0.1."
        )


def _require_room(settings: Serving) -> None:
    """Refuse a second endpoint on a cluster, whose address would be the first one's, and a port that is taken."""
    if any(actor["name"] == CONTROLLER for actor in ray.util.list_named_actors(all_namespaces=True)):
        raise ClusterError(
            "this Ray cluster serves already, and has one HTTP address. End that endpoint first, "
            "or unset RAY_ADDRESS and end the standing cluster (`rayrec stop`) to have one started of its own."
        )
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.host, settings.port))
        except OSError as error:
            raise ClusterError(
                f"{settings.host}:{settings.port} cannot be listened on: {error.strerror}. Choose another with --port."
            ) from error


def _cause(error: Exception) -> str:
    """What went wrong, without the traceback around it."""
    application = serve.status().applications.get(APP_NAME)
    lines = [line.strip() for line in f"{error}\n{application.message if application else ''}".splitlines()]
    told = [line for line in lines if "rayrec.errors." in line or "Error:" in line or "cannot bind" in line]
    return (told or [line for line in lines if line])[-1]
