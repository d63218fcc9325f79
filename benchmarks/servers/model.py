"""What all peers serve: the scorer that rayrec serves, and what users had, by their keys in memory.

No Ray, no torch: NumPy, ONNX Runtime, pyarrow, fsspec and safetensors do.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rayrec.artifacts import Storage
from rayrec.inference.bundle import open_bundle

COUNT = 10
MAX_BATCH_SIZE = 64
"""Of every server that makes batches."""


class Model:
    """Recommends to users.

    Args:
        folder: What `write` left.
    """

    def __init__(self, folder: Path | str) -> None:
        place = json.loads((Path(folder) / "bundle.json").read_text())
        # One thread, as rayrec's replicas have.
        self.scorer = open_bundle(Storage.open(place["storage"]), place["path"]).scorer(threads=1)
        with np.load(Path(folder) / "histories.npz", allow_pickle=False) as stored:
            users, items = stored["users"].tolist(), np.split(stored["items"], stored["offsets"][1:-1])
        self.histories: dict[str, np.ndarray] = dict(zip(users, items, strict=True))

    def recommend(self, users: Sequence[str]) -> list[dict[str, Any]]:
        """What a server answers to each of some users, in one pass: the best items that they have not had."""
        histories = [self.histories[user] for user in users]
        rows, scores = self.scorer.top(histories, COUNT, exclude=histories)
        names = self.scorer.item_keys
        return [
            {
                "user": user,
                "items": [
                    {"item": names[row - 1], "score": score} for row, score in zip(found, values, strict=True) if row
                ],
            }
            for user, found, values in zip(users, rows.tolist(), scores.tolist(), strict=True)
        ]


def write(folder: Path, storage: Storage, release: str) -> list[str]:
    """Keep what `Model` needs of a Release. Returns the keys of its users."""
    from rayrec.data.dataset import open_dataset
    from rayrec.data.event_log import load_histories
    from rayrec.inference.release import open_release

    content = open_release(storage, release).content
    bundle = open_bundle(storage, content["models"]["main"])
    dataset = open_dataset(storage, content["dataset"]["name"], content["dataset"]["manifest"])
    known = load_histories(dataset, bundle.item_keys, content["event_types"])
    users = sorted(known.users, key=lambda user: known.users[user])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "bundle.json").write_text(json.dumps({"storage": storage.uri, "path": bundle.path}))
    histories = known.histories
    np.savez(folder / "histories.npz", users=np.array(users), offsets=histories.offsets, items=histories.items)
    return users


def asked_for(description: str | None) -> argparse.Namespace:
    """The arguments that every server has."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", required=True, help="a folder that benchmarks/serving.py wrote")
    parser.add_argument("--port", type=int, required=True)
    return parser.parse_args()
