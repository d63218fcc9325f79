"""Records of trials: what is damaged is said, and costs no other trial."""

from __future__ import annotations

import pytest

from rayrec.artifacts import Storage
from rayrec.errors import StorageError
from rayrec.tuning.records import Records, TrialRecord

FOLDER = "sweeps/test/key"
WHOLE = TrialRecord(0, {"model.dim": 8}, "name", "done", curve=(0.1, 0.2), values={"ndcg@10": 0.2})


@pytest.mark.parametrize(
    "damaged",
    [b"{}", b"{", b'{"number": 1, "curve": 3, "copied_from": []}', b'{"curve": [], "copied_from": [], "x": 1}'],
)
def test_a_damaged_record_is_one_message(storage: Storage, damaged: bytes) -> None:
    records = Records(storage, FOLDER)
    records.write(WHOLE)
    storage.replace(f"{FOLDER}/trials/000001.json", damaged)
    with pytest.raises(StorageError, match=r"000001\.json is damaged .*Remove it"):
        records.read()
    assert records.readable == [WHOLE]


def test_damaged_settings_are_one_message(storage: Storage) -> None:
    records = Records(storage, FOLDER)
    assert records.threads is None
    records.begin(2, {})
    assert records.threads == 2
    storage.replace(f"{FOLDER}/sweep.json", b"{}")
    with pytest.raises(StorageError, match=r"sweep\.json is damaged .*Remove it"):
        _ = records.threads


def test_what_is_forgotten_is_gone_but_for_who_is_at_it(storage: Storage) -> None:
    records = Records(storage, FOLDER)
    with records.driven():
        records.begin(1, {})
        records.write(WHOLE)
        records.clear()
        assert storage.list(FOLDER) == ["lease"]
    assert storage.list(FOLDER) == []
