"""Every route answers what its OpenAPI document says, whatever it is asked."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, assume, given, seed, settings
from hypothesis.errors import FailedHealthCheck, Unsatisfiable
from schemathesis.generation import GenerationMode
from tests.serving.test_app import Direct

from rayrec.inference.release import Release
from rayrec.serving.app import build_app
from rayrec.serving.engine import Engine
from rayrec.serving.store.store import Store

EXAMPLES = {GenerationMode.POSITIVE: 4, GenerationMode.NEGATIVE: 1}


@pytest.fixture(scope="module")
def schema(release: Release, filled: Store) -> Any:
    engine = Engine.load(release.storage, release.digest, known=filled.histories_of, catalog=filled.catalog)
    return schemathesis.openapi.from_asgi("/openapi.json", build_app(Direct(engine, filled)))


def is_uneven(case: schemathesis.Case) -> bool:
    """Whether a session has another number of times than of items, or goes back: no schema can say so."""
    times = case.body.get("times") if isinstance(case.body, dict) else None
    return times is not None and (len(times) != len(case.body["items"]) or times != sorted(times))


@pytest.mark.parametrize("mode", [*GenerationMode])
def test_routes_answer_as_the_document_says(schema: Any, mode: GenerationMode) -> None:
    # Of JSON lines the document says only that they are a text.
    operations = [found.ok() for found in schema.exclude(path_regex="^/v1/bulk/").get_all_operations()]
    assert len(operations) > 65
    if mode == GenerationMode.NEGATIVE:
        # Any path is that of some key.
        operations = [one for one in operations if len(one.query) or len(one.body)]
        assert len(operations) > 30
    for operation in operations:
        strategy = operation.as_strategy(generation_mode=mode)

        @seed(0)
        @settings(
            max_examples=EXAMPLES[mode],
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.differing_executors],
        )
        @given(case=strategy)
        def answers(case: schemathesis.Case) -> None:
            assume(mode == GenerationMode.NEGATIVE or not is_uneven(case))
            case.call_and_validate()

        # Nothing can be wrong with a route that takes nothing.
        with suppress(Unsatisfiable, FailedHealthCheck):
            answers()
