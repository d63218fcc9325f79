"""The Ray cluster a command runs on: one that is there, or one started for the command and ended with it."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import psutil

from rayrec.artifacts import TEMPORARY, Json, Storage, home
from rayrec.errors import ClusterError, DataError
from rayrec.ports import choose_haproxy_ports, choose_replica_ports, free_port

if TYPE_CHECKING:
    from rayrec.recipe_data import TableSource

SERVE_SETTINGS = {"RAY_SERVE_ENABLE_HA_PROXY": "1", "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1"}
"""Ray Serve's own HAProxy instead of its Python proxy, for throughput (docs/serving.md)."""

SETTINGS = {
    **SERVE_SETTINGS,
    # Its threads wake each other for every request: one in place of four answers 14 % more on two cores, and passes on
    # what about fifteen cores of replicas answer.
    "RAY_SERVE_HAPROXY_NBTHREAD": "1",
    # A process of Ray's would read a line of HAProxy's for each request, which costs 8 % of them. Replicas count, too.
    "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",
    # Ray's agent takes up each request that it is told of again: every ten seconds, a core would be busy for .3.
    "RAY_metrics_report_interval_ms": "2000",
    # How long a replica stays for balancers that have not heard of its end; the default of 30 s is for those outside.
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "3",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    # A worker that does not answer for so long hangs; Ray waits for ten minutes.
    "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": "60",
    # How long those are waited for that wait for one that is gone or hangs; Ray's default is 30.
    "TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S": "5",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    # How long Ray Data keeps resources for a driver that is gone; a living one asks anew every 10 s.
    "RAY_DATA_AUTOSCALING_REQUEST_EXPIRE_TIME_S": "30",
    "RAY_USAGE_STATS_ENABLED": "0",
    # A thread that still runs when a command ends would otherwise begin another cluster.
    "RAY_ENABLE_AUTO_CONNECT": "0",
    # A head that is told to end ends, instead of draining for half a minute with nowhere to drain to.
    "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
}
AGENT_PORT = 52365
"""Ray's own choice, on which jobs depend."""

START_SECONDS = 60
CONNECT_SECONDS = 3
STOP_SECONDS = 20
NODE_SECONDS = 60
CLOCK_SECONDS = 5


@contextmanager
def connected(
    storage: Storage | None = None, files: Sequence[tuple[str, TableSource | None]] = (), verbose: bool = False
) -> Iterator[None]:
    """Attach to ``RAY_ADDRESS`` or the cluster running on this machine, else start one and end it.

    Args:
        storage: Checked to be within reach of every node, by writing to it.
        files: URIs of files, or databases, that every node must be able to read, each with the source it is of.
        verbose: Show what workers print.

    Raises:
        ClusterError: ``RAY_ADDRESS`` leads nowhere, or a node cannot do its part.
    """
    import ray

    if ray.is_initialized():
        # A notebook or test that is connected already stays so.
        yield
        return
    address = os.environ.get("RAY_ADDRESS") or standing_address()
    if address is None:
        with started(verbose=verbose):
            yield
        return
    prepare_environment()
    _require_answer(address)
    sys.stderr.write(f"on the Ray cluster at {address}\n")
    try:
        ray.init(address=address, log_to_driver=verbose, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.AuthenticationError) as error:
        raise ClusterError(
            f"no Ray cluster answers at {address}: {str(error).splitlines()[0]} "
            "Check RAY_ADDRESS (and, where the cluster asks for a token, RAY_AUTH_MODE and RAY_AUTH_TOKEN), "
            "or unset it to have one started."
        ) from error
    _quieten()
    try:
        with _reporting_loss(address):
            _check_nodes(storage, files)
            yield
    finally:
        ray.shutdown()


@contextmanager
def started(cpus: int | None = None, object_store_bytes: int | None = None, verbose: bool = False) -> Iterator[None]:
    """A Ray on this machine for as long as the block lasts."""
    import ray

    prepare_environment()
    _forget_dead_cluster()
    choose_haproxy_ports(os.environ)
    choose_replica_ports(os.environ)
    ray.init(
        address="local",
        num_cpus=cpus,
        object_store_memory=object_store_bytes,
        include_dashboard=False,
        log_to_driver=verbose,
        logging_level=logging.ERROR,
    )
    _quieten()
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def _reporting_loss(address: str) -> Iterator[None]:
    """One message when the head, or all that could do the work, is gone. What a task itself raises stays as it is."""
    from ray import exceptions

    lost = (
        exceptions.RayActorError,
        exceptions.RaySystemError,
        exceptions.NodeDiedError,
        exceptions.WorkerCrashedError,
        exceptions.LocalRayletDiedError,
        exceptions.ObjectLostError,
        exceptions.OutOfMemoryError,
        exceptions.RpcError,
    )
    try:
        yield
    except lost as error:
        raise ClusterError(
            f"the Ray cluster at {address} lost what this command needs: {str(error).strip().splitlines()[0]} "
            "Once there is a cluster again, the same command goes on where this one stopped."
        ) from error


def has_fast_serve() -> bool:
    """Whether the cluster's nodes were started with `SERVE_SETTINGS` (workers inherit a node's environment)."""
    import ray

    def seen() -> bool:
        return all(os.environ.get(name) == value for name, value in SERVE_SETTINGS.items())

    return cast("bool", ray.get(ray.remote(num_cpus=0)(seen).remote()))


def start_standing(port: int = 6379, dashboard_port: int = 8265) -> Json:
    """Start a Ray that stays: `rayrec start`. Returns its address and process id.

    Raises:
        ClusterError: One is running already, or it does not come up.
    """
    running = _standing()
    if running:
        raise ClusterError(f"a cluster of rayrec is running already at {running['address']}. `rayrec stop` ends it.")
    _require_token()
    log = home() / "cluster.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", "--disable-usage-stats"]
    command += [f"--port={port}", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard_port}"]
    if _answers(f"127.0.0.1:{AGENT_PORT}"):
        # Another Ray on this machine has it. Ray itself would start all the same, and refuse every job.
        command += [f"--dashboard-agent-listen-port={free_port()}"]
    environment = {**SETTINGS, **os.environ, "RAY_AUTH_MODE": os.environ.get("RAY_AUTH_MODE", "token")}
    choose_replica_ports(environment)
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,
        )
    began = psutil.Process(process.pid).create_time()
    state = {
        "pid": process.pid,
        "began": began,
        "address": f"127.0.0.1:{port}",
        "dashboard": f"http://127.0.0.1:{dashboard_port}",
    }
    _await_start(process, state, log)
    _state_file().write_text(json.dumps(state), encoding="utf-8")
    return state


def stop_standing() -> Json:
    """End the Ray that `start_standing` started, and everything it started.

    Raises:
        ClusterError: There is none.
    """
    running = _standing()
    if not running:
        raise ClusterError("no cluster of rayrec is running on this machine. `rayrec start` starts one.")
    # It leads a session of its own: its raylet, GCS, dashboard, workers and proxies.
    end_session(running["pid"])
    _state_file().unlink(missing_ok=True)
    return running


def standing_address() -> str | None:
    """The address of the cluster that `rayrec start` or `ray start` left running on this machine."""
    running = _standing()
    if running:
        return str(running["address"])
    try:
        address = _note().read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return None
    return address if _answers(address) else None


def _note() -> Path:
    """Where `ray start` notes its address, to leave the note behind when it is killed."""
    return Path(os.environ.get("RAY_TMPDIR", "/tmp")) / "ray" / "ray_current_cluster"  # noqa: S108 - Ray's own place


def _forget_dead_cluster() -> None:
    """Remove a note that leads nowhere: Ray's own processes would follow it, and wait (12 s at the end of training)."""
    if standing_address() is None:
        # It may belong to another user.
        with suppress(PermissionError):
            _note().unlink(missing_ok=True)


def _answers(address: str) -> bool:
    """Whether somebody listens at HOST:PORT."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()
    except (OSError, ValueError):
        return False
    return True


def _require_answer(address: str) -> None:
    """Ray itself would try for a minute, and then end the process."""
    if address != "auto" and not _answers(address):
        raise ClusterError(f"no Ray cluster answers at {address}. Check RAY_ADDRESS, or unset it to have one started.")


def prepare_environment() -> None:
    """Settings that Ray reads when it is imported or when its processes start; what the user set stays."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    if _has_token() and "ray" not in sys.modules:
        # `ray start` turns on authentication when there is a token; whoever connects has to be told, before Ray is
        # imported, which reads this once.
        os.environ.setdefault("RAY_AUTH_MODE", "token")


def _has_token() -> bool:
    """Whether Ray finds an authentication token where it looks for one."""
    given = os.environ.get("RAY_AUTH_TOKEN_PATH")
    return bool(os.environ.get("RAY_AUTH_TOKEN")) or Path(given or Path.home() / ".ray" / "auth_token").is_file()


def _require_token() -> None:
    """Have Ray make its token, once for this user. Its output holds the token, so it goes nowhere."""
    if not _has_token():
        command = [str(Path(sys.executable).with_name("ray")), "get-auth-token", "--generate"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _quieten() -> None:
    """Ray Data tells of every pass, which is ours to do. Its import sets up its log, so this comes after."""
    import ray.data

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False


def _check_nodes(storage: Storage | None, files: Sequence[tuple[str, TableSource | None]]) -> None:
    """Refuse a cluster of which a node cannot import rayrec, reach the storage, or read a source.

    Raises:
        ClusterError: What which node cannot do.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    nodes = [node for node in ray.nodes() if node["Alive"]]
    here = ray.get_runtime_context().get_node_id()
    if (
        storage
        and storage.is_local
        and all(node["NodeID"] == here and not node["Resources"].get("CPU") for node in nodes)
    ):
        sys.stderr.write(
            f"warning: this node runs no work, and storage '{storage.uri}' is a path on it. "
            "It must be a folder that the nodes to come share.\n"
        )
    # In a folder where `rayrec gc` looks, should this be killed.
    marker = f"runs/{TEMPORARY}{uuid.uuid4().hex}"
    if storage:
        storage.write_new(marker, b"")
    try:
        task = ray.remote(num_cpus=0, max_retries=0)(_out_of_reach)
        answers = {
            node["NodeID"]: task.options(
                scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            ).remote(storage, marker, files)
            for node in nodes
        }
        for node in nodes:
            _check_answer(node, answers[node["NodeID"]], len(nodes))
    finally:
        if storage:
            with suppress(FileNotFoundError):
                storage.remove(marker)


def _check_answer(node: Json, answer: Any, nodes: int) -> None:
    """Turn what a node cannot do into one message."""
    import ray

    where = f"the node {node['NodeManagerHostname']} ({node['NodeManagerAddress']}), one of {nodes},"
    try:
        missing = ray.get(answer, timeout=NODE_SECONDS)
    except ray.exceptions.GetTimeoutError as error:
        raise ClusterError(f"{where} did not answer within {NODE_SECONDS} s. Is it overloaded or cut off?") from error
    except ray.exceptions.RayError as error:
        reason = [line for line in str(error).strip().splitlines() if line.strip()][-1].strip()
        raise ClusterError(
            f"{where} cannot run rayrec's code: {reason}. Install rayrec there with the same versions, "
            "or submit the command as a job that brings it along (docs/operations.md)."
        ) from error
    if missing:
        raise ClusterError(
            f"{where} cannot reach {missing}. Set `storage` in the recipe, or RAYREC_STORAGE, and the paths of the "
            "sources to a place that all nodes reach, such as s3://bucket/folder, and give each node the credentials."
        )


def _out_of_reach(storage: Storage | None, marker: str, files: Sequence[tuple[str, TableSource | None]]) -> str:
    """What this node cannot reach, in words; empty when there is nothing."""
    # Not above: the commands that only ask a cluster something need not load what reads data.
    from rayrec.data.readers import check_reach
    from rayrec.recipe_data import TableSource

    try:
        if storage and not storage.exists(marker):
            return f"storage '{storage.uri}' (a file just written there is not seen)"
        for uri, source in files:
            check_reach(uri, source or TableSource(path=uri))
    except DataError as error:
        return str(error).rstrip(".")
    except Exception as error:
        # Every kind of failure to reach it is the answer here.
        return f"{storage.uri if storage else 'a file'}: {error}"
    return ""


def _state_file() -> Path:
    return home() / "cluster.json"


def _standing() -> Json | None:
    """What `start_standing` left, if that process is still alive."""
    try:
        state = cast("Json", json.loads(_state_file().read_text(encoding="utf-8")))
        # After a reboot the number may be somebody else's. Clocks are set now and then, by a little.
        same = abs(psutil.Process(state["pid"]).create_time() - state["began"]) < CLOCK_SECONDS
    except (FileNotFoundError, KeyError, psutil.NoSuchProcess):
        return None
    return state if same else None


def _await_start(process: subprocess.Popen[Any], state: Json, log: Path) -> None:
    """Wait until the cluster answers."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        text = log.read_text(errors="replace")
        if "Ray runtime started" in text:
            return
        if process.poll() is not None:
            last = [line for line in text.splitlines() if line.strip()][-1:] or ["no output"]
            raise ClusterError(f"Ray did not start: {last[0]} (all of it: {log}).")
        time.sleep(0.2)  # polls a process that has no event to wait for
    end_session(process.pid)
    raise ClusterError(f"Ray did not start within {START_SECONDS} s; see {log}. Is {state['address']} free?")


def end_session(leader: int) -> None:
    """End every process of a session: SIGTERM, and SIGKILL to those that linger.

    Ray's own processes are one process group, but Serve's HAProxy leads another, and outlives them.
    """
    for sent in (signal.SIGTERM, signal.SIGKILL):
        members = [process for process in psutil.process_iter() if _session_of(process.pid) == leader]
        for process in members:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(sent)
        psutil.wait_procs(members, timeout=STOP_SECONDS)


def _session_of(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except (ProcessLookupError, PermissionError):
        return None
