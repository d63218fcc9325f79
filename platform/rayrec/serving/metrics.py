"""What is measured of an endpoint. It is counted here, in plain Python; `exporting` hands it to Ray.

Ray's own metrics cost 2.6 microseconds an observation in the replica, and those of its `Histogram` 10 more in the agent
of the node, which takes each one up anew: 6 % of an answer that is observed five times. These cost .7, and Ray is told
of sums, once a second, whatever the load.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from rayrec.inference.release import Release

REGISTRY = CollectorRegistry()
"""Of this process: of one replica."""
SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
UNKNOWN_USER, UNKNOWN_ITEMS, DEGRADED, LATE, FAILED = "unknown_user", "unknown_items", "degraded", "late", "failed"
"""Why popular items are given in place of the model's."""

REQUESTS = Counter(
    "rayrec_requests",
    "Requests that were answered, by the route's template, the method and the class of the status (2xx).",
    ("route", "method", "status"),
    registry=REGISTRY,
)
REQUEST_SECONDS = Histogram(
    "rayrec_request_duration_seconds",
    "From a request to the end of its answer, by the route's template.",
    ("route",),
    buckets=SECONDS,
    registry=REGISTRY,
)
STAGE_SECONDS = Histogram(
    "rayrec_stage_duration_seconds",
    "Parts of an answer: ask (what is known of the user is read), wait (in the queue), score (a pass of a model over a "
    "batch), arrange (the funnel, over a batch).",
    ("stage",),
    buckets=SECONDS,
    registry=REGISTRY,
)
BATCH_SIZE = Histogram(
    "rayrec_batch_size_requests", "Requests that were scored together.", buckets=SIZES, registry=REGISTRY
)
QUEUE_LENGTH = Gauge(
    "rayrec_queue_length_requests", "Requests that a batch left waiting when it began.", registry=REGISTRY
)
CACHE = Counter(
    "rayrec_cache_requests",
    "Requests of known users: hit (the answer was remembered), shared (computed for another one), miss (computed).",
    ("outcome",),
    registry=REGISTRY,
)
CACHE_HITS, CACHE_SHARED, CACHE_MISSES = (CACHE.labels(outcome) for outcome in ("hit", "shared", "miss"))
FALLBACKS = Counter(
    "rayrec_fallbacks",
    "Popular items in place of the model's: unknown_user, unknown_items (the model knows none of the history), "
    "degraded (the database did not answer), late (the deadline had passed), failed (the model did).",
    ("reason",),
    registry=REGISTRY,
)
ARM_SECONDS = Histogram(
    "rayrec_arm_duration_seconds",
    "From a question to a Release to its answer, by arm: main, those of `arms`, shadow.",
    ("arm",),
    buckets=SECONDS,
    registry=REGISTRY,
)
ARM_ANSWERS = Counter(
    "rayrec_arm_answers",
    "Answers by arm: good, or degraded (popular items in place of the Release's; of a shadow also none at all).",
    ("arm", "outcome"),
    registry=REGISTRY,
)
SHADOW_AGREEMENT = Histogram(
    "rayrec_shadow_agreement_ratio",
    "The share of the items of an answer that the shadow recommended, too.",
    buckets=(0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0),
    registry=REGISTRY,
)
RELEASE_INFO = Gauge(
    "rayrec_release_info", "1 for a Release that is live, with its arm.", ("release", "name", "arm"), registry=REGISTRY
)
RELEASES_ROLLED_BACK = Counter(
    "rayrec_releases_rolled_back", "Times that a live Release was taken back, since it failed.", registry=REGISTRY
)
RELEASES_REFUSED = Counter(
    "rayrec_releases_refused", "Times that a Release could not be loaded, and the live one stayed.", registry=REGISTRY
)
IMPRESSIONS_LOST = Counter(
    "rayrec_impressions_lost", "Answers that could not be written down as impressions.", registry=REGISTRY
)
EVENTS_WRITTEN = Counter("rayrec_events_written", "New events that were kept.", registry=REGISTRY)


def show_live(releases: Mapping[str, Release]) -> None:
    """Show Releases as those that are live, by their arms."""
    RELEASE_INFO.clear()
    for arm, release in releases.items():
        RELEASE_INFO.labels(release.digest, release.name, arm).set(1)


def answered(arm: str, seconds: float, degraded: bool) -> None:
    """Count an answer of an arm."""
    # `labels` takes longer than to count.
    _seconds_of(arm).observe(seconds)
    _answers_of(arm, "degraded" if degraded else "good").inc()


@cache
def _seconds_of(arm: str) -> Histogram:
    return ARM_SECONDS.labels(arm)


@cache
def _answers_of(arm: str, outcome: str) -> Counter:
    return ARM_ANSWERS.labels(arm, outcome)
