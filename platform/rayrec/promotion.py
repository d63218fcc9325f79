"""Promotion: whether a new Release becomes the champion."""

from __future__ import annotations

from dataclasses import replace

from rayrec.artifacts import Json, Storage
from rayrec.data.dataset import open_dataset
from rayrec.data.user_features import OtherFeaturesError
from rayrec.data.views import load_view
from rayrec.errors import RayrecError
from rayrec.evaluation.compare import FairBundle, fair_bundle, refit_note
from rayrec.evaluation.evaluate import Measure, evaluate
from rayrec.inference.index import BEST, SIMILAR
from rayrec.inference.release import open_release
from rayrec.tracking import RegisteredRelease, Tracker

ITEMS = {BEST: "best items", SIMILAR: "most similar items"}


def promote_if_not_worse(tracker: Tracker, new: RegisteredRelease, metric: str, mine: float, measure: Measure) -> str:
    """Promote a Release if there is no champion, or it is not worse on the same test events. Returns what was decided.

    Args:
        tracker: Where the champion is registered.
        new: The Release.
        metric: What decides, such as ``ndcg@10``.
        mine: Its value on the test fold, of the model trained on the training fold, whatever is served.
        measure: What it was measured on, and how.
    """
    champion = tracker.champion()
    if champion is None:
        tracker.promote(new.version)
        return f"promoted: {new.name}/{new.version} is the first champion"
    named = f"the champion {champion.name}/{champion.version}"
    try:
        theirs, doubt = _measured(champion, metric, measure)
    except OtherFeaturesError as error:
        by_hand = f"`rayrec promote {new.name}/{new.version}` does it all the same"
        return f"not promoted: {named} cannot be measured on the same events ({error}) {by_hand}"
    except RayrecError as error:
        # It cannot be served either, so there is nothing to lose.
        tracker.promote(new.version)
        return f"promoted: {named} cannot be read ({error})"
    compared = f"test {metric} {mine:.4f} against {theirs:.4f} of {named}{doubt}"
    if mine < theirs:
        return f"not promoted: {compared}. `rayrec promote {new.name}/{new.version}` does it all the same"
    tracker.promote(new.version)
    return f"promoted: {compared}"


def recall_refusal(index: Json | str, new: RegisteredRelease) -> str | None:
    """Why a Release is not promoted whose index finds too few of the best items; None where it finds enough.

    Args:
        index: What the Release says of its index.
        new: The Release.
    """
    if isinstance(index, str):
        return None
    short = [kind for kind in ITEMS if kind in index and index[kind]["recall"] < index[kind]["floor"]]
    if not short:
        return None
    measured = index[short[0]]
    looked = f"{measured['probes']:,} of {measured['cells']:,} cells, codes {measured['codes']}"
    return (
        f"not promoted: the index finds {measured['recall']:.4f} of the {measured['k']} {ITEMS[short[0]]} ({looked}; "
        f"{measured['queries']:,} requests), less than serving.index.recall_floor = {measured['floor']}. Leave "
        "serving.index.probes out, set serving.index.codes to float32, or serving.index.from_items to null, which "
        f"scores all items. `rayrec promote {new.name}/{new.version}` does it all the same"
    )


def _measured(champion: RegisteredRelease, metric: str, measure: Measure) -> tuple[float, str]:
    """The champion's metric on these test events, measured anew unless it was on them, alike; and a note on it."""
    storage = Storage.open(champion.storage)
    release = open_release(storage, champion.digest)
    dataset, pinned = open_dataset(measure.storage, *measure.dataset_version), release.content["dataset"]
    tested = release.content["metrics"]["main"]
    same = (pinned["view"], pinned["digest"]) == (measure.view, dataset.digest)
    alike = release.content["evaluation"]["exclude_seen"] == measure.settings.exclude_seen
    if same and alike and metric in tested:
        return float(tested[metric]), ""
    # On the same data both were trained on the training fold. On other data what is served now is held against the new
    # model, unless it was trained again on what is asked here: then it knows the answers.
    before = FairBundle(release.evaluated["main"], trained_on_test=0)
    fair = before if same else fair_bundle(release, dataset, measure.view, load_view(dataset, measure.view))
    found = evaluate(replace(measure, bundle=fair.path, bundle_storage=storage, folds=("test",)))
    return float(found["test"][metric]), _doubt(fair)


def _doubt(measured: FairBundle) -> str:
    """What is to be said of a champion that was made from other data: it may know test events."""
    refit = f" ({refit_note(measured.refit_on_test)})" if measured.refit_on_test else ""
    known = measured.trained_on_test
    if isinstance(known, str):
        return f"{refit} (whether that was trained on test events is not known: {known.rstrip('.')})"
    return f"{refit} (which was trained on {known:,} of the test events: no fair measure)" if known else refit
