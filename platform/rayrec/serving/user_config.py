"""What can change while replicas run: Serve's ``user_config``."""

from __future__ import annotations

import re
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from rayrec.errors import RecipeError

ARM = "^[a-z0-9][a-z0-9_-]{0,63}$"
MAIN, SHADOW = "main", "shadow"
"""The arm of whoever is in no other, and that of nobody."""
_DIGEST = re.compile("[0-9a-f]{8,64}")


class Arm(BaseModel):
    """Another Release for some of the users.

    Attributes:
        release: As in `UserConfig`.
        share: Of the users.
    """

    model_config = ConfigDict(extra="forbid")

    release: str
    share: float = Field(gt=0, lt=1)


class Shadow(BaseModel):
    """Another Release that is asked the same, and whose answers nobody gets.

    Attributes:
        release: As in `UserConfig`.
        share: Of the requests.
    """

    model_config = ConfigDict(extra="forbid")

    release: str
    share: float = Field(1.0, gt=0, le=1)


class UserConfig(BaseModel):
    """A replica's configuration.

    Attributes:
        release: NAME, NAME@ALIAS or NAME/VERSION, looked up in MLflow by each replica; with ``storage``, a digest. NAME
            and NAME@ALIAS are looked up again and again: when the alias moves, the replica follows.
        storage: Where Releases live that are given by their digest.
        follow: NAME or NAME@ALIAS that is followed from ``release`` on, which is what it is said to be now.
        arms: Other Releases, by the name of the arm, for shares of the users: a canary, or an A/B test.
        experiment: Another one gives users other arms.
        shadow: Another Release that is asked the same.
        max_batch_size: See the recipe's `serving`; by default what the Release says. So are the others.
    """

    model_config = ConfigDict(extra="forbid")

    release: str
    storage: str | None = None
    follow: str | None = None
    arms: dict[str, Arm] = {}
    experiment: str = ""
    shadow: Shadow | None = None
    max_batch_size: int | None = Field(None, ge=1)
    max_queued_requests: int | None = Field(None, ge=1)
    deadline_ms: float | None = Field(None, gt=0)
    cache_answers: int | None = Field(None, ge=0)
    cache_seconds: float | None = Field(None, ge=0)
    coalesce: bool | None = None
    impressions_days: int | None = Field(None, ge=0)
    state: str | None = None
    access_log: bool | None = None
    tracing: bool | None = None

    @field_validator("arms")
    @classmethod
    def _named(cls, arms: dict[str, Arm]) -> dict[str, Arm]:
        odd = [name for name in arms if not re.fullmatch(ARM, name) or name in {MAIN, SHADOW}]
        if odd:
            raise ValueError(
                f"'{odd[0]}' is no name of an arm: lower-case letters, digits, - and _, and not {MAIN} or {SHADOW}"
            )
        return arms

    @model_validator(mode="after")
    def _shares(self) -> UserConfig:
        total = sum(arm.share for arm in self.arms.values())
        if total > 1:
            raise ValueError(f"the arms have {total:.0%} of the users together, more than all")
        return self

    @classmethod
    def of(cls, config: dict[str, Any]) -> UserConfig:
        """Of what Serve gives.

        Raises:
            RecipeError: It is not one.
        """
        try:
            return cls.model_validate(config)
        except ValidationError as error:
            problems = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'all'}: {e['msg']}" for e in error.errors())
            raise RecipeError(f"user_config: {problems}. Known keys: {', '.join(cls.model_fields)}.") from error

    def settings(self) -> dict[str, Any]:
        """What it says of the recipe's `serving`."""
        about_releases = {"release", "storage", "follow", "arms", "experiment", "shadow"}
        return self.model_dump(exclude=about_releases, exclude_none=True)

    @property
    def follows(self) -> bool:
        """Whether one of its Releases is another one when an alias moves."""
        given = [self.follow or self.release, *(arm.release for arm in self.arms.values())]
        given += [self.shadow.release] if self.shadow else []
        return any("/" not in release and not self.is_digest(release) for release in given)

    def is_digest(self, release: str) -> bool:
        """Whether a Release is given by its digest."""
        return self.storage is not None and _DIGEST.fullmatch(release) is not None
