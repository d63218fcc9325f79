"""Work done ahead: in order, one ahead, and over when nobody asks for more."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator

import pytest

from rayrec.training.ahead import ahead


def test_all_is_made_in_order_after_the_thread_was_prepared() -> None:
    begun: list[str] = []
    made = list(ahead(lambda n: (n * n, begun[0]), range(4), lambda: begun.append(threading.current_thread().name)))
    assert [square for square, _ in made] == [0, 1, 4, 9]
    assert begun == [made[0][1]]
    assert begun[0] != threading.current_thread().name


@pytest.mark.parametrize("wanted", [[], [7]])
def test_none_or_one_is_made(wanted: Iterable[int]) -> None:
    assert list(ahead(lambda n: n, wanted)) == list(wanted)


def test_the_next_is_made_while_one_is_in_use() -> None:
    made = [threading.Event() for _ in range(3)]

    def make(number: int) -> int:
        made[number].set()
        return number

    results = ahead(make, range(3))
    assert next(results) == 0
    assert made[1].wait(20)
    assert not made[2].wait(0.05), "not more than one ahead"
    assert list(results) == [1, 2]


def test_what_goes_wrong_is_raised_where_its_result_is_asked_for() -> None:
    def make(number: int) -> int:
        return 1 // (2 - number)

    results = ahead(make, range(4))
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_the_thread_ends_when_nobody_asks_for_more() -> None:
    results = ahead(lambda n: threading.current_thread(), range(3))
    assert isinstance(results, Iterator)
    thread = next(results)
    assert thread.is_alive()
    del results
    thread.join(20)
    assert not thread.is_alive()
