"""Fifteen faults: a worker, a node or the driver is killed, a node is taken away with notice, or a worker hangs.

    make bench-faults
    .venv/bin/python benchmarks/faults.py --kills 15 --seed 0 --json build/faults.json

They come at random moments. Two workers train on two nodes that share an S3 server (moto's, on this machine) and
nothing else. After each the weights must be, byte for byte, those of the run that nothing happened to. A killed driver
is run again with the same command; a lost node is replaced by an empty one. Prints one table and writes JSON.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import os
import random
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from itertools import cycle, islice
from pathlib import Path

import fsspec
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.nodes import Driver, Nodes
from tests.recipes import write_log, write_recipe

from rayrec.artifacts import Storage

EPOCHS = 40
MODEL = {"name": "sasrec", "dim": 32, "blocks": 2, "max_length": 12, "dropout": 0.2}
TRAINING = {
    "epochs": EPOCHS,
    "batch_size": 4,
    "learning_rate": 0.001,
    "patience": EPOCHS,
    "gpus": "no",
    "workers": 2,
    "hung": "restart",
}
KINDS = ("worker", "node", "driver", "notice", "hung")
PATIENCE = "10"
"""Seconds after which a worker that does not answer hangs."""
NOTICE = 4
"""Seconds that a node is told of its end before."""
STORAGE = "s3://rayrec/faults"


@dataclass(frozen=True)
class Outcome:
    """What became of a run.

    Attributes:
        killed: What was killed, taken away or stopped.
        at: The epoch told of last before.
        seconds: Of the training, all in all.
        exit_code: Of the command; of the second one when the driver was killed.
        identical: Whether the weights are those of the undisturbed run.
    """

    killed: str
    at: int
    seconds: float
    exit_code: int
    identical: bool


class Experiment:
    """Runs of one recipe on three nodes."""

    def __init__(self, nodes: Nodes, storage: Storage, recipe: Path) -> None:
        self._nodes, self._storage, self._recipe = nodes, storage, recipe
        self.weights = ""

    def undisturbed(self) -> float:
        """Train once in peace. Returns the seconds."""
        began = time.perf_counter()
        driver = self._begin()
        if driver.finish():
            raise SystemExit(driver.output)
        self.weights = self._weights()
        return time.perf_counter() - began

    def disturbed(self, kind: str) -> Outcome:
        """Train again, and kill something in the middle."""
        self._storage.remove("stages/train")
        began = time.perf_counter()
        driver = self._begin()
        driver.await_epoch(random.randint(1, EPOCHS - 5))
        time.sleep(random.uniform(0, 0.3))
        at = driver.epochs[-1]
        if kind == "driver":
            driver.kill()
            driver = self._begin()
        elif kind == "node":
            self._nodes.kill_node()
        elif kind == "notice":
            self._nodes.reclaim_node(NOTICE)
        elif kind == "hung":
            self._nodes.stop_worker()
        else:
            self._nodes.kill_worker()
        code = driver.finish()
        return Outcome(kind, at, time.perf_counter() - began, code, not code and self._weights() == self.weights)

    def _begin(self) -> Driver:
        return self._nodes.driver("train", str(self._recipe))

    def _weights(self) -> str:
        (record,) = self._storage.list("stages/train")
        bundle = self._storage.read_json(f"stages/train/{record}")["output"]["bundle"]
        return hashlib.sha256(self._storage.read(f"{bundle}/dense.safetensors")).hexdigest()


def object_store() -> dict[str, str]:
    """Start an S3 server in this process. Returns the variables by which clients find it."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    found = "http://{}:{}".format(*server.get_host_and_port())
    keys = {"AWS_ACCESS_KEY_ID": "nobody", "AWS_SECRET_ACCESS_KEY": "nothing", "AWS_DEFAULT_REGION": "us-east-1"}
    os.environ.update(keys, AWS_ENDPOINT_URL=found)
    fsspec.filesystem("s3").mkdir("rayrec")
    return {**keys, "AWS_ENDPOINT_URL": found}


def main() -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=15)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, default=Path("build/faults.json"))
    arguments = parser.parse_args()
    random.seed(arguments.seed)
    variables = object_store()
    storage = Storage.open(STORAGE)
    with tempfile.TemporaryDirectory(prefix="rayrec-faults-") as temporary:
        folder = Path(temporary)
        log = write_log(folder)
        for name in ("log.csv", "items.csv"):
            storage.replace(f"logs/{name}", log.with_name(name).read_bytes())
        recipe = write_recipe(folder, f"{STORAGE}/logs/log.csv", model=MODEL, training=TRAINING)
        settings = {"RAYREC_STORAGE": STORAGE, "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": PATIENCE}
        with Nodes(folder, **settings, **variables) as nodes:
            experiment = Experiment(nodes, storage, recipe)
            experiment.undisturbed()
            # Again, with everything prepared: this is what the others are measured against.
            storage.remove("stages/train")
            seconds = experiment.undisturbed()
            outcomes = [experiment.disturbed(kind) for kind in islice(cycle(KINDS), arguments.kills)]
    show(outcomes, seconds)
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    result = {"undisturbed_seconds": seconds, "weights": experiment.weights, "runs": [asdict(o) for o in outcomes]}
    arguments.json.write_text(json.dumps(result, indent=1))


def show(outcomes: list[Outcome], seconds: float) -> None:
    """Print the table."""
    table = Table(title=f"Faults in {EPOCHS} epochs on two nodes; undisturbed {seconds:.0f} s")
    for column in ("what", "at epoch", "exit code", "seconds", "weights identical"):
        table.add_column(column, justify="right")
    for o in outcomes:
        table.add_row(o.killed, str(o.at), str(o.exit_code), f"{o.seconds:.0f}", "yes" if o.identical else "NO")
    median = statistics.median(o.seconds for o in outcomes)
    table.add_row("median", "", "", f"{median:.0f}", f"{sum(o.identical for o in outcomes)} of {len(outcomes)}")
    Console().print(table)


if __name__ == "__main__":
    main()
