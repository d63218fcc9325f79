"""The same preparation by rayrec, Polars, pandas and RecBole: seconds, and memory of all processes together.

    make bench-prepare
    .venv/bin/python benchmarks/prepare.py --rows 20_000_000 --repeat 3 --json build/prepare.json
    .venv/bin/python benchmarks/prepare.py --rows 100_000 --programs rayrec --warm
    .venv/bin/python benchmarks/prepare.py --rows 50_000_000 --programs ""     # only generate

Generated logs are read, rows that cannot be used and repeated ones (one in a hundred) dropped, users and items with
five events each kept to a fixed point and given ids, and each user's sequence in order of time written as Parquet.
rayrec also keeps the whole log, the rejected rows and the folds of a split. RecBole's loader does less: it gets clean
rows in its own format, made outside of the measurement, and neither orders nor writes them. `--recbole PYTHON` is an
interpreter that has it: recbole==1.2.1 "setuptools<81" "numpy<2" "pandas<2.3" torch==2.13.0.

Programs take turns; prints one table of medians and writes JSON. The sum of resident sizes (RSS) counts memory that
processes share, such as Ray's object store, once for each of them; proportional sizes (PSS, Linux) count it once.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil

if TYPE_CHECKING:
    import polars as pl

# Libraries that only some of the programs need are imported where they are used: the others must not pay for them, and
# RecBole's interpreter does not have them.

CORE = 5
KEY = ["user", "item", "timestamp", "type"]
COLUMNS = ["user", "item", "type", "rating", "timestamp"]
LEFT = ("users", "items", "events")
Counts = dict[str, int]


# ---- the logs

CHUNK = 1_000_000
DIRTY = 0.002
MISSING_USER, MISSING_ITEM, BAD_TIME, BAD_VALUE, REPEATED = range(5)
TYPES, TYPE_SHARES = ["view", "cart", "purchase"], [0.8, 0.15, 0.05]
START, SECONDS = 1_600_000_000, 2 * 365 * 86_400
Columns = dict[str, np.ndarray]


def generate(folder: Path, rows: int, files: int, seed: int) -> Path:
    """CSV files of ``rows`` events in no order, .2 % of them dirty in each of five ways. Returns their folder.

    Those there already are kept. About ``rows / 20`` users and ``rows / 200`` items, some far more active than others.
    """
    target = folder / f"events-{rows}-{files}-{seed}"
    if target.exists():
        return target
    # A folder half written must not be taken for a whole one.
    partial = target.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    users, items = _shares(rng, rows // 20, sigma=1), _shares(rng, rows // 200, sigma=2)
    earlier: Columns = {}
    for number in range(files):
        left = rows // files + (number < rows % files)
        with (partial / f"part-{number:03d}.csv").open("wb") as output:
            output.write(f"{','.join(COLUMNS)}\n".encode())
            while left:
                size = min(CHUNK, left)
                events = _events(rng, size, users, items)
                _dirty(rng, events, earlier or events).write_csv(output, include_header=False)
                earlier, left = events, left - size
    return partial.rename(target)


def _shares(rng: np.random.Generator, count: int, sigma: float) -> np.ndarray:
    """Cumulative shares of log-normal weights: ``[count]`` float64, ending in 1."""
    weights = np.cumsum(rng.lognormal(sigma=sigma, size=max(1, count)))
    return weights / weights[-1]


def _events(rng: np.random.Generator, size: int, users: np.ndarray, items: np.ndarray) -> Columns:
    """Clean events in no order, keys and types as numbers: each column ``[size]`` int64."""
    return {
        "user": np.searchsorted(users, rng.random(size), side="right"),
        "item": np.searchsorted(items, rng.random(size), side="right"),
        "type": np.searchsorted(np.cumsum(TYPE_SHARES)[:-1], rng.random(size), side="right"),
        "rating": rng.integers(1, 6, size),
        "timestamp": START + rng.integers(SECONDS, size=size),
    }


def _dirty(rng: np.random.Generator, events: Columns, earlier: Columns) -> pl.DataFrame:
    """The events as they are written; some now repeat ``earlier`` ones, which are mostly in another part of the log."""
    import polars as pl

    flaws = (rng.random(len(events["user"])) / DIRTY).astype(np.int64)
    repeated = np.flatnonzero(flaws == REPEATED)
    source = rng.integers(len(earlier["user"]), size=len(repeated))
    for name, column in events.items():
        column[repeated] = earlier[name][source]
    flaw = pl.col("flaw")
    return pl.DataFrame({**events, "flaw": flaws}).select(
        user=pl.when(flaw != MISSING_USER).then(pl.format("u{}", "user")),
        item=pl.when(flaw != MISSING_ITEM).then(pl.format("i{}", "item")),
        type=pl.col("type").replace_strict(range(len(TYPES)), TYPES),
        rating=pl.when(flaw != BAD_VALUE).then(pl.col("rating").cast(pl.String)).otherwise(pl.lit("good")),
        timestamp=pl.when(flaw != BAD_TIME).then(pl.col("timestamp").cast(pl.String)).otherwise(pl.lit("yesterday")),
    )


# ---- the job, as a user of each library would write it


def polars_events(logs: Path) -> pl.LazyFrame:
    """The usable events, each once."""
    import polars as pl

    return (
        pl.scan_csv(logs / "*.csv", schema=dict.fromkeys(COLUMNS, pl.String))
        .with_columns(pl.col("rating").cast(pl.Float64, strict=False), pl.col("timestamp").cast(pl.Int64, strict=False))
        .drop_nulls()
        .unique(KEY)
    )


def polars_job(logs: Path, out: Path) -> Counts:
    """The job in Polars."""
    import polars as pl

    events = polars_events(logs).select("user", "item", "timestamp").collect(engine="streaming")
    for key in ("user", "item"):
        ids = events.select(pl.col(key).unique().sort()).with_row_index("id", offset=1)
        ids.write_parquet(out / f"{key}s.parquet")
        events = events.join(ids, on=key).drop(key).rename({"id": key})
    before = 0
    while events.height != before:
        before = events.height
        events = events.filter(pl.len().over("item") >= CORE).filter(pl.len().over("user") >= CORE)
    sequences = events.sort("user", "timestamp").group_by("user", maintain_order=True).agg("item", "timestamp")
    sequences.write_parquet(out / "sequences.parquet")
    return {"users": sequences.height, "items": events["item"].n_unique(), "events": events.height}


def pandas_job(logs: Path, out: Path) -> Counts:
    """The job in pandas."""
    import pandas as pd

    events = pd.concat([pd.read_csv(path, dtype="str") for path in sorted(logs.glob("*.csv"))], ignore_index=True)
    for column in ("rating", "timestamp"):
        events[column] = pd.to_numeric(events[column], errors="coerce")
    events = events.dropna().drop_duplicates(KEY)[["user", "item", "timestamp"]]
    for key in ("user", "item"):
        events[key], names = pd.factorize(events[key], sort=True)
        pd.DataFrame({key: names}).to_parquet(out / f"{key}s.parquet")
    before = 0
    while len(events) != before:
        before = len(events)
        for key in ("item", "user"):
            events = events[events.groupby(key)[key].transform("size") >= CORE]
    sequences = events.sort_values(["user", "timestamp"]).groupby("user").agg(list)
    sequences.to_parquet(out / "sequences.parquet")
    return {"users": len(sequences), "items": events["item"].nunique(), "events": len(events)}


def recbole_job(logs: Path, _out: Path) -> Counts:
    """What RecBole's loader does of the job, with the file of `write_recbole`."""
    from recbole.config import Config
    from recbole.data.dataset import Dataset

    columns = {"USER_ID_FIELD": "user", "ITEM_ID_FIELD": "item", "TIME_FIELD": "timestamp"}
    core = dict.fromkeys(["user_inter_num_interval", "item_inter_num_interval"], f"[{CORE},inf)")
    settings = {**columns, **core, "data_path": str(logs.parent), "load_col": {"inter": list(columns.values())}}
    # Config reads the command line, too.
    del sys.argv[1:]
    dataset = Dataset(Config(model="Pop", dataset=logs.name, config_dict=settings))
    return {"users": dataset.user_num - 1, "items": dataset.item_num - 1, "events": dataset.inter_num}


def write_recbole(logs: Path, work: Path) -> Path:
    """The usable events, each once, as RecBole wants them. Returns their folder."""
    folder = work / "events"
    folder.mkdir()
    header = {"user": "user:token", "item": "item:token", "timestamp": "timestamp:float"}
    polars_events(logs).select(*header).rename(header).sink_csv(folder / "events.inter", separator="\t")
    return folder


JOBS = {"polars": polars_job, "pandas": pandas_job, "recbole": recbole_job}


# ---- one run

MARK = "RAYREC_BENCHMARK"
WARM = "rayrec, warm"
SAMPLE_SECONDS = 0.1
LOOKS = 5


class Memory(threading.Thread):
    """Peak memory of every process whose environment has `MARK` at this value, and of their sessions, in bytes.

    A tree of parents would miss daemons whose parent has ended, and a process that renames itself may overwrite its
    environment, so neither is enough alone.

    Attributes:
        rss: Sum of resident sizes.
        pss: Sum of proportional sizes; None where the system does not tell.
    """

    def __init__(self, mark: str) -> None:
        super().__init__()
        self.rss = 0
        self.pss = 0 if Path("/proc/self/smaps_rollup").exists() else None
        self._mark = mark
        self._sessions = set[int]()
        self._looks = Counter[int]()
        self._ended = threading.Event()

    def end(self) -> None:
        """Stop watching."""
        self._ended.set()
        self.join()

    def run(self) -> None:
        """Sample until told to end."""
        while not self._ended.wait(SAMPLE_SECONDS):
            members = [pid for pid in psutil.pids() if self._belongs(pid)]
            rss = sum(map(_rss, members))
            self.rss = max(self.rss, rss)
            # Never more than the RSS, and dear to read: the kernel walks all pages.
            if self.pss is not None and rss > self.pss:
                try:
                    self.pss = max(self.pss, sum(map(_pss, members)))
                except PermissionError:
                    # As in some containers; a part of the sum would be worse than none.
                    self.pss = None

    def _belongs(self, pid: int) -> bool:
        with suppress(ProcessLookupError, PermissionError, psutil.NoSuchProcess, psutil.AccessDenied):
            session = os.getsid(pid)
            # Between fork and exec a process still has its parent's environment, so one look is too few.
            if session not in self._sessions and self._looks[pid] < LOOKS:
                self._looks[pid] += 1
                if psutil.Process(pid).environ().get(MARK) == self._mark:
                    self._sessions.add(session)
            return session in self._sessions
        return False


def _rss(pid: int) -> int:
    with suppress(psutil.NoSuchProcess):
        return int(psutil.Process(pid).memory_info().rss)
    return 0


def _pss(pid: int) -> int:
    # It may have ended meanwhile.
    with suppress(FileNotFoundError, ProcessLookupError):
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
    return 0


@dataclass
class Run:
    """How a program did.

    Attributes:
        program: Which.
        seconds: From its start to its end.
        rss, pss: As `Memory` has them.
        failure: How it ended, when it failed.
        counts: Users, items and events that are left.
        stage_seconds: Without the start and the end of the session, where the program tells.
    """

    program: str
    seconds: float
    rss: int
    pss: int | None
    failure: str
    counts: Counts = field(default_factory=dict)
    stage_seconds: float | None = None


def measure(program: str, command: Sequence[str], environment: dict[str, str], work: Path) -> tuple[Run, str]:
    """Run a command; what it starts ends with it. Returns also what it said on stdout, empty when it failed."""
    from rayrec.cluster import end_session

    said, memory = work / "stdout", Memory(environment[MARK])
    memory.start()
    with said.open("wb") as out:
        began = time.perf_counter()
        process = subprocess.Popen(command, env=environment, stdout=out, start_new_session=True)
        try:
            code = process.wait()
            seconds = time.perf_counter() - began
        finally:
            memory.end()
            end_session(process.pid)
    failure = f"exit code {code}" if code else ""
    return Run(program, seconds, memory.rss, memory.pss, failure), "" if code else said.read_text()


def run_job(program: str, python: str, logs: Path, work: Path) -> Run:
    """One of `JOBS` in a process of its own."""
    command = [python, __file__, "job", program, str(logs), str(work)]
    run, said = measure(program, command, {**os.environ, MARK: secrets.token_hex()}, work)
    if said:
        run.counts = json.loads(said.splitlines()[-1])
    return run


def run_rayrec(program: str, logs: Path, work: Path) -> Run:
    """`rayrec prepare`, with a home of its own; `WARM` on a cluster that is there already, and counted in."""
    recipe = work / "recipe.yaml"
    recipe.write_text(json.dumps(recipe_values(logs, work)))  # JSON is YAML
    command = [sys.executable, "-m", "rayrec", "prepare", str(recipe), "--json"]
    # Sockets live below Ray's folder, and their paths must be short.
    with tempfile.TemporaryDirectory(prefix="rb-", dir="/tmp") as ray:
        own = {"RAYREC_HOME": str(work / "home"), "MLFLOW_TRACKING_URI": f"sqlite:///{work}/mlflow.db"}
        given = {name: value for name, value in os.environ.items() if name not in {"RAY_ADDRESS", "RAYREC_STORAGE"}}
        environment = {**given, **own, "RAY_TMPDIR": ray, MARK: secrets.token_hex()}
        with cluster(environment) if program == WARM else nullcontext():
            run, said = measure(program, command, environment, work)
    if said:
        stage = json.loads(said)["stages"]["prepare"]
        view = work / "storage" / "datasets" / stage["dataset"] / "views" / stage["view"] / "view.json"
        counts = json.loads(view.read_text())["counts"]
        run.counts = {key: counts[key] for key in LEFT}
        run.stage_seconds = stage["seconds"]
    return run


def recipe_values(logs: Path, work: Path) -> dict[str, Any]:
    """The job as a recipe. The model does not matter here."""
    columns = {"user": "user", "item": "item", "timestamp": "timestamp", "type": "type", "value": "rating"}
    return {
        "name": "events",
        "storage": str(work / "storage"),
        "data": {
            "sources": [{"path": str(logs), "columns": columns, "time_unit": "s"}],
            "clean": {"max_bad_rows": 0.05},
            "view": {"min_user_events": CORE, "min_item_events": CORE},
        },
        "model": {"name": "popularity"},
    }


@contextmanager
def cluster(environment: dict[str, str]) -> Iterator[None]:
    """`rayrec start`, and `rayrec stop` afterwards."""
    from rayrec.ports import free_port

    # Given here, Ray does not write a token for the user, to be found by everything this user runs later.
    environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex()}
    rayrec = [sys.executable, "-m", "rayrec"]
    ports = ["--port", str(free_port()), "--dashboard-port", str(free_port())]
    subprocess.run([*rayrec, "start", *ports], env=environment, check=True, stdout=subprocess.DEVNULL)
    try:
        yield
    finally:
        subprocess.run([*rayrec, "stop"], env=environment, check=True, stdout=subprocess.DEVNULL)


# ---- all of them


def show(runs: list[Run], rows: int) -> None:
    """Print the table of medians. All must leave what the first one leaves: that is rayrec, if it runs."""
    form = "{:<12} {:>8} {:>8} {:>11} {:>8} {:>8} {:>11} {:>10} {:>11}  {}"
    print(f"{rows:,} rows; memory is the peak of all processes, in MiB")
    print(form.format("program", "s", "stage s", "rows/s", "RSS", "PSS", *LEFT, "counts"))
    expected = next((run.counts for run in runs if run.counts), {})
    for program in dict.fromkeys(run.program for run in runs):
        mine = [run for run in runs if run.program == program]
        failure = next((run.failure for run in mine if run.failure), "")
        verdict = failure or ("agree" if all(run.counts == expected for run in mine) else "DIFFER")
        seconds = statistics.median(run.seconds for run in mine)
        stage, rss, pss = (_median([getattr(r, name) for r in mine]) for name in ("stage_seconds", "rss", "pss"))
        figures = [f"{seconds:.2f}", f"{stage:.2f}", f"{rows / seconds:,.0f}", f"{rss / 2**20:,.0f}"]
        counts = [f"{mine[-1].counts[key]:,}" if mine[-1].counts else "" for key in LEFT]
        print(form.format(program, *figures, f"{pss / 2**20:,.0f}", *counts, verdict).replace("nan", "  -"))


def _median(values: Sequence[float | None]) -> float:
    """NaN where the program or the system did not tell."""
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else float("nan")


def main() -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("build/events"), help="of the logs, which stay there")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--files", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--programs", default="rayrec,polars,pandas")
    parser.add_argument("--warm", action="store_true", help="also rayrec on a cluster started before")
    parser.add_argument("--recbole", metavar="PYTHON", help="also RecBole's loader, by this interpreter")
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--json", type=Path, default=Path("build/prepare.json"))
    arguments = parser.parse_args()
    programs = [name for name in arguments.programs.split(",") if name]
    programs += [WARM] * arguments.warm + ["recbole"] * bool(arguments.recbole)
    began = time.perf_counter()
    logs = generate(arguments.folder.resolve(), arguments.rows, arguments.files, arguments.seed)
    print(f"{logs}: {time.perf_counter() - began:.1f} s", file=sys.stderr)
    if not programs:
        return
    for path in logs.iterdir():
        # From here on it is in memory, for the first program as for the others.
        path.read_bytes()
    runs: list[Run] = []
    for program in programs * arguments.repeat:
        with tempfile.TemporaryDirectory(dir=logs.parent) as work:
            if program == "recbole":
                runs.append(run_job(program, arguments.recbole, write_recbole(logs, Path(work)), Path(work)))
            elif program in JOBS:
                runs.append(run_job(program, sys.executable, logs, Path(work)))
            else:
                runs.append(run_rayrec(program, logs, Path(work)))
    show(runs, arguments.rows)
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    log = {"rows": arguments.rows, "files": arguments.files, "seed": arguments.seed}
    arguments.json.write_text(json.dumps({**log, "runs": [asdict(run) for run in runs]}, indent=1))


if __name__ == "__main__":
    if sys.argv[1:2] == ["job"]:
        name, given, out = sys.argv[2:]
        print(json.dumps(JOBS[name](Path(given), Path(out))))
    else:
        main()
