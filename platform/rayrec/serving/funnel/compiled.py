"""Loops that are compiled to machine code, and let other threads run meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import numba

Loop = TypeVar("Loop", bound=Callable[..., Any])


def compiled(signature: str | None = None) -> Callable[[Loop], Loop]:
    """Have a function compiled; what comes of it is kept on disk where that can be written.

    Args:
        signature: What it takes and gives, in numba's words. Nothing else is taken: to compile for other types would
            keep a request waiting for seconds. None for what only compiled functions of the same file call.
    """

    def decorate(function: Loop) -> Loop:
        # Sums may be taken in any order, which is what lets several numbers be added at a time.
        as_usual = {"nogil": True, "error_model": "numpy", "fastmath": {"reassoc", "contract"}}
        compile_: Any = partial(numba.njit, signature, **as_usual)
        try:
            found: Loop = compile_(cache=signature is not None)(function)
        except RuntimeError as error:
            if "cannot cache" not in str(error):
                raise
            found = compile_()(function)
        return found

    return decorate
