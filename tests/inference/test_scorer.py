"""The scorer: one interface to every model, and the MLflow flavour around it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from rayrec.artifacts import Storage
from rayrec.errors import DataError
from rayrec.inference.offered import Limits, Offered
from rayrec.inference.release import Release
from rayrec.inference.scorer import Scorer, of_like_length
from rayrec.inference.top_k import top_k

Published = tuple[Storage, Release]
HISTORIES = [np.array([1, 2, 3]), np.zeros(0, np.int64), np.array([7] * 20)]


@pytest.fixture(scope="module")
def scorer(published: Published) -> Scorer:
    return published[1].bundle().scorer()


def test_rows_and_keys_map_to_each_other(scorer: Scorer) -> None:
    assert scorer.rows_of(["item 30", "unknown", "item 1"]).tolist() == [30, 1]
    assert scorer.rows_of([]).dtype == np.int64


def test_padding_is_never_recommended(scorer: Scorer) -> None:
    scores = scorer.score(HISTORIES)
    assert scores.shape == (3, 31)
    assert (scores[:, 0] == -np.inf).all()
    assert np.isfinite(scores[:, 1:]).all()
    assert (scorer.top(HISTORIES, 30)[0] > 0).all()


def test_only_the_latest_events_count(scorer: Scorer) -> None:
    long = np.arange(1, 20)
    np.testing.assert_allclose(scorer.score([long])[0, 1:], scorer.score([long[-6:]])[0, 1:], atol=1e-5)


def test_others_in_the_batch_change_nothing(scorer: Scorer) -> None:
    alone = np.concatenate([scorer.score([history]) for history in HISTORIES])
    np.testing.assert_allclose(scorer.score(HISTORIES)[:, 1:], alone[:, 1:], atol=1e-5)


def test_histories_of_like_length_share_a_pass() -> None:
    parts = of_like_length([3, 100, 0, 90, 79, 2, 0], 0.8)
    assert [part.tolist() for part in parts] == [[1, 3], [4], [0], [5], [2, 6]]
    assert [part.tolist() for part in of_like_length([3, 100, 0], 0)] == [[1, 0, 2]]
    assert [part.tolist() for part in of_like_length([], 0.8)] == [[]]


def test_candidates_get_the_scores_they_have_among_all(scorer: Scorer) -> None:
    wanted = [np.array([5, 1]), np.array([2, 2]), np.array([30, 4])]
    found = scorer.score(HISTORIES, candidates=wanted)
    assert (found == np.take_along_axis(scorer.score(HISTORIES), np.stack(wanted), 1)).all()


def test_excluded_items_are_left_out(scorer: Scorer) -> None:
    rows, scores = scorer.top(HISTORIES, 30, exclude=HISTORIES)
    for found, values, history in zip(rows, scores, HISTORIES, strict=True):
        left = 30 - len(set(history.tolist()))
        assert not set(found[:left]) & set(history)
        assert not found[left:].any()
        assert (np.diff(values[:left]) <= 0).all()


def test_no_request_is_answered_with_no_rows(scorer: Scorer) -> None:
    assert scorer.score([]).shape == (0, 31)
    assert scorer.top([], 5)[0].shape == (0, 5)


def test_similar_items_are_the_nearest_by_cosine(scorer: Scorer) -> None:
    vectors = scorer.vectors
    assert vectors is not None
    anything = Offered.everything(30)
    found = scorer.similar(np.array([4]), 5, Limits(anything))
    assert found is not None
    others = [row for row in range(1, 31) if row != 4]
    cosine = {
        row: vectors[row] @ vectors[4] / np.linalg.norm(vectors[row]) / np.linalg.norm(vectors[4]) for row in others
    }
    assert found[0].tolist() == sorted(others, key=lambda row: -cosine[row])[:5]
    np.testing.assert_allclose(found[1], sorted(cosine.values(), reverse=True)[:5], rtol=1e-5)
    others = scorer.similar(np.array([4]), 5, Limits(anything, found[0][:2]))
    assert others is not None
    assert others[0][:3].tolist() == found[0][2:].tolist()
    both = scorer.similar(np.array([4, 9]), 30, Limits(anything))
    assert both is not None
    assert not {4, 9} & {*both[0].tolist()}
    assert scorer.nearest(4, found[0], 2) == [
        (found[0][0], pytest.approx(found[1][0])),
        (found[0][1], pytest.approx(found[1][1])),
    ]


def test_a_model_without_vectors_knows_no_similar_items(published: Published) -> None:
    popular = published[1].bundle("popular").scorer()
    assert popular.similar(np.array([4]), 5, Limits(Offered.everything(30))) is None


def test_popular_items_come_first_for_everybody(published: Published) -> None:
    rows, scores = published[1].bundle("popular").scorer().top(HISTORIES, 3)
    assert rows.tolist() == [[3, 5, 1]] * 3
    assert scores.tolist() == [[2, 1, 0]] * 3


# ---- as MLflow's own


def test_mlflow_loads_a_release_without_a_pickle_and_answers_alike(
    published: Published, scorer: Scorer, tmp_path: Path, home: Path
) -> None:
    import mlflow.pyfunc

    from rayrec.inference.pyfunc import write_reference
    from rayrec.tracking import _save_flavour

    write_reference(tmp_path / "data", published[1])
    _save_flavour(tmp_path / "flavour", tmp_path / "data")
    assert not list((tmp_path / "flavour").rglob("*.pkl"))
    model = mlflow.pyfunc.load_model(str(tmp_path / "flavour"))
    frame = pd.DataFrame({"history": [["item 1", "item 2", "item 3", "unknown"], [], ["item 7"] * 20]})
    found = model.predict(frame, params={"k": 4})
    rows, scores = scorer.top(HISTORIES, 4, exclude=HISTORIES)
    assert found["items"].tolist() == [[f"item {row}" for row in best] for best in rows]
    np.testing.assert_allclose(np.array(found["scores"].tolist()), scores, atol=1e-5)
    assert [len(items) for items in model.predict(frame)["items"]] == [10, 10, 10]
    assert not set(found["items"][0]) & {"item 1", "item 2", "item 3"}


def test_a_frame_without_histories_is_one_message(published: Published) -> None:
    from rayrec.inference.pyfunc import ReleaseModel

    with pytest.raises(DataError, match="expected a column 'history', found: user"):
        ReleaseModel(published[1]).predict(pd.DataFrame({"user": [1]}))


def test_the_best_of_all_are_the_best_of_the_scores(scorer: Scorer) -> None:
    rows, values = scorer.top(HISTORIES, 5)
    expected = top_k(scorer.score(HISTORIES), 5)
    assert (rows == expected[0]).all()
    assert (values == expected[1]).all()
