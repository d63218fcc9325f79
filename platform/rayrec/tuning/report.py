"""The report of a sweep: one HTML file that needs no network."""

from __future__ import annotations

from rayrec.artifacts import Json
from rayrec.recipe import Recipe
from rayrec.tuning.options import Search
from rayrec.tuning.records import TrialRecord


def sweep_page(recipe: Recipe, chosen: Search, trials: list[TrialRecord], best: TrialRecord, metrics: Json) -> str:
    """The page."""
    return ""
