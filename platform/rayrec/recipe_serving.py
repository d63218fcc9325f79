"""The recipe's `serving` section: the endpoint, and the funnel from candidates to an answer."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from rayrec.recipe_data import LARGE_CATALOGUE, Section


class Sources(Section):
    """How many candidates each source gives; what several give is one candidate."""

    model: int = Field(
        200, ge=1, le=10_000, description="The best by the model, or for who has no history popular items."
    )
    similar: int = Field(0, ge=0, le=1000, description="The nearest to the latest items of the history.")
    popular: int = Field(0, ge=0, le=1000, description="What most users had.")
    trending: int = Field(0, ge=0, le=1000, description="What most users did something with in the last day.")
    latest: int = Field(0, ge=0, le=1000, description="The newest items that the model knows.")


class Funnel(Section):
    """From candidates to an answer. By default what the model says, best first."""

    sources: Sources = Sources()
    merge: Literal["model", "ranks"] = Field(
        "model",
        description="`model`: all candidates by the model's score. `ranks`: by their places in the sources "
        "(reciprocal rank fusion), so that what several of them put first comes first.",
    )
    diversity: Literal["none", "mmr", "dpp"] = Field(
        "none",
        description="What items that are like those before them lose by: maximal marginal relevance, or a "
        "determinantal point process. Needs a model with item vectors.",
    )
    diversity_weight: float = Field(0.2, ge=0, lt=1, description="How much likeness counts against relevance.")
    category_cap: int | None = Field(None, ge=1, description="Most items of a category in the first `sources.model`.")
    freshness_weight: float = Field(
        0.0, ge=0, le=10, description="What an item gains that has just come; the best candidate has 1, the last 0."
    )
    freshness_days: float = Field(30, gt=0, description="Days after which it gains half of that.")
    cold_every: int | None = Field(
        None, ge=2, description="Every so many places, one is for an item that the model does not know yet."
    )
    cold_days: float | None = Field(None, gt=0, description="Only for those that came in so many days; by default all.")
    exploration: float = Field(
        0.0, ge=0, le=1, description="The chance of a place to be given to any candidate, evenly (epsilon-greedy)."
    )

    @property
    def is_plain(self) -> bool:
        """Whether it is the model's order that is shown."""
        changing = ("diversity", "category_cap", "freshness_weight", "cold_every", "exploration")
        same = all(getattr(self, name) == type(self).model_fields[name].default for name in changing)
        return same and self.merge == "model"


class Index(Section):
    """How the best items are found in large catalogues, by models whose scores are inner products."""

    from_items: int | None = Field(
        LARGE_CATALOGUE,
        ge=1,
        description="Items from which on they are looked up in an index, approximately; below, and where it is null, "
        "all are scored.",
    )
    recall_floor: float = Field(
        0.95,
        gt=0,
        le=1,
        description="Share of the best 100 items that the index must find, measured; below, a Release is not promoted.",
    )
    codes: Literal["int8", "float32"] = Field(
        "int8", description="How the index holds vectors; float32 takes four times the memory, and finds a little more."
    )
    cells: int | None = Field(None, ge=1, description="Parts of the index; by default about 4 sqrt(items).")
    probes: int | None = Field(
        None, ge=1, description="Parts that a request looks through; by default the fewest that reach the floor."
    )

    def is_for(self, items: int) -> bool:
        """Whether a catalogue of so many items is large."""
        return self.from_items is not None and items >= self.from_items


class Serving(Section):
    """The HTTP endpoint."""

    host: str = Field("127.0.0.1", description="Address to listen on; other than localhost it needs API keys.")
    port: int = Field(8000, ge=1, le=65535, description="Port to listen on.")
    exclude_seen: bool = Field(True, description="Do not recommend what the user already had.")
    min_replicas: int = Field(1, ge=1, description="Replicas when idle.")
    max_replicas: int = Field(4, ge=1, description="Replicas under load.")
    target_ongoing_requests: float = Field(
        16, gt=0, description="Requests in flight a replica that autoscaling aims at."
    )
    upscale_seconds: float = Field(5, ge=0, description="How long there are too few replicas before more are started.")
    downscale_seconds: float = Field(120, ge=0, description="How long there are too many before some are ended.")
    max_queued_requests: int | None = Field(
        None,
        ge=1,
        description="Requests that wait in a replica; beyond, 429. By default as many as two passes take: who is let "
        "in waits for those and the one under way.",
    )
    deadline_ms: float = Field(
        1000, gt=0, description="After so long a request gets popular items, marked, instead of the model's."
    )
    max_batch_size: int = Field(64, ge=1, description="Most requests scored in one pass.")
    cache_answers: int = Field(
        20_000, ge=0, description="Users whose answers a replica remembers, until they do something; 0 remembers none."
    )
    cache_seconds: float = Field(30, ge=0, description="For how long.")
    coalesce: bool = Field(True, description="Whether requests that ask the same at once share one answer.")
    replica_cpus: float = Field(0.5, gt=0, description="CPUs reserved a replica.")
    state: str | None = Field(
        None,
        description="URL of the database of events, items and users, such as "
        "postgresql://${USER}:${PASSWORD}@HOST/DATABASE; by default a SQLite file in RAYREC_HOME.",
    )
    impressions_days: int = Field(
        30, ge=0, le=3660, description="Days for which the endpoint keeps what it recommended; 0 keeps nothing."
    )
    log_format: Literal["text", "json"] = Field(
        "text",
        description="Of the logs; `json`: one object a line. (With `serve deploy`, its `logging_config` says so.)",
    )
    access_log: bool = Field(False, description="Whether replicas log a line for each request.")
    tracing: bool = Field(
        False,
        description="Whether replicas send OpenTelemetry spans to where OTEL_EXPORTER_OTLP_ENDPOINT says; "
        "needs rayrec[tracing].",
    )

    funnel: Funnel = Funnel()
    index: Index = Index()

    @property
    def queue(self) -> int:
        """`max_queued_requests`, or what it is by default."""
        return self.max_queued_requests or 2 * self.max_batch_size

    @model_validator(mode="after")
    def _replicas_in_order(self) -> Serving:
        if self.min_replicas > self.max_replicas:
            raise ValueError(f"min_replicas ({self.min_replicas}) must not exceed max_replicas ({self.max_replicas})")
        return self
