"""Blocks of work as Ray tasks."""

from __future__ import annotations

import numpy as np
import pytest

from rayrec.data.tasks import by_ray
from rayrec.errors import DataError
from rayrec.models.interactions import blocks_of, here

pytestmark = pytest.mark.usefixtures("ray_cluster")


def total(values: np.ndarray, block: range) -> float:
    return float(values[block.start : block.stop].sum())


def refuse(values: np.ndarray, block: range) -> float:
    raise DataError(f"block {block.start} is no good.")


def test_tasks_give_what_one_process_gives_in_the_same_order() -> None:
    values, blocks = np.arange(100.0), blocks_of(100, 7)
    assert list(by_ray(total, values, blocks)) == list(here(total, values, blocks))


def test_an_error_arrives_as_it_was_raised() -> None:
    with pytest.raises(DataError) as caught:
        list(by_ray(refuse, np.arange(4.0), blocks_of(4, 2)))
    assert str(caught.value) == "block 0 is no good."
