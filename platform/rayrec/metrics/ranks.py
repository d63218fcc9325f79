"""From scores to ranks: where each held-out target stands in the full ranking, in torch on the device of the scores.

`ranking` turns the ranks into metrics. It is a module of its own because it needs no torch: whoever only reads a
metric's name should not wait for torch to load.
"""

from __future__ import annotations

import torch

from rayrec.metrics.ranking import UNREACHABLE_RANK

BLOCK = 2**20
"""Numbers compared at a time: 4 MB of float32, which stay in a CPU's cache and still fill a GPU."""


def rank_targets(
    scores: torch.Tensor, targets: torch.Tensor, excluded: tuple[torch.Tensor, torch.Tensor] | None = None
) -> torch.Tensor:
    """Rank each user's targets over the whole catalogue, ties counting against the model.

    ``rank = 1 + #(other candidates with score >= the target's score)``, where a candidate is any item that is not
    excluded, the user's other targets included. Of several tied targets of one user each takes its own rank: all tied
    non-targets come first, then the targets in their order in ``targets``. So a model that scores everything alike
    cannot look good by accident (Krichene & Rendle, KDD 2020, on why to rank over the whole catalogue; Sun et al.,
    ACL 2020, on why the place among ties must not favour the target).

    The cost is one pass over V per target and one over ``scores`` to look for NaN; the scores are never copied whole.

    Args:
        scores: float32 [B, V], higher is better; minus infinity is a score like any other. A column that is no item
            (such as a padding row of the catalogue) is a candidate too unless ``excluded``. On any device.
        targets: int64 [B, T], columns of ``scores``, distinct within a user, padded with -1 anywhere in the row.
        excluded: Rows and columns, int64 [E] each, of what is no candidate (such as items seen in training), in any
            order and with repetitions; none by default.

    Returns:
        int64 [B, T]: ranks from 1 to V, 0 where ``targets`` is padded. A target that is itself excluded gets
        ``UNREACHABLE_RANK``: a relevant item that no cut-off reaches, so it still lowers recall.

    Raises:
        ValueError: a score is NaN, shapes disagree, a target is repeated or no column of ``scores``, or something
            ``excluded`` is outside ``scores``.

    >>> rank_targets(torch.tensor([[0.5, 0.9, 0.5, 0.1]]), torch.tensor([[0, 3, -1]]))
    tensor([[3, 4, 0]])
    """
    _check_rankable(scores, targets)
    present = targets >= 0
    own = scores.gather(1, targets.clamp(min=0))
    reachable, at_or_above = present, torch.zeros_like(targets)
    if excluded is not None:
        at_or_above, is_excluded = _count_excluded(scores, targets, own, *excluded)
        reachable = present & ~is_excluded
    users, places = reachable.nonzero(as_tuple=True)
    counts = _count_at_or_above(scores, users, own[users, places])
    ranks = torch.where(present, UNREACHABLE_RANK, 0)
    ranks[users, places] = counts - at_or_above[users, places]
    return ranks - _tied_targets_behind(own, reachable)


class NoNumberError(ValueError):
    """Scores are not numbers."""


def _check_rankable(scores: torch.Tensor, targets: torch.Tensor) -> None:
    if scores.ndim != 2 or targets.ndim != 2 or len(targets) != len(scores):
        msg = f"scores [B, V] and targets [B, T] do not fit: {tuple(scores.shape)} and {tuple(targets.shape)}"
        raise ValueError(msg)
    # A maximum hands NaN on, and needs no [B, V] mask.
    has_nan = scores.amax(dim=1).isnan()
    if has_nan.any():
        msg = f"{int(has_nan.sum())} of {len(scores)} users have NaN scores; NaN has no rank"
        raise NoNumberError(msg)
    if _outside(targets, -1, scores.shape[1]):
        msg = f"targets must be -1 (padding) or columns 0..{scores.shape[1] - 1} of scores"
        raise ValueError(msg)
    in_order = targets.sort(dim=1).values
    if ((in_order[:, 1:] == in_order[:, :-1]) & (in_order[:, 1:] >= 0)).any():
        msg = "a user has the same target twice; relevance is a set, so pass each target once"
        raise ValueError(msg)


def _outside(index: torch.Tensor, low: int, end: int) -> bool:
    return bool(((index < low) | (index >= end)).any())


def _count_at_or_above(scores: torch.Tensor, users: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
    """Count the columns of ``scores[users]`` that reach ``own``; both are [P], and so is the int64 answer."""
    step = max(1, BLOCK // scores.shape[1])
    buffer = scores.new_empty(min(step, len(users)), scores.shape[1])
    counts = torch.empty(len(users), device=scores.device)
    for start in range(0, len(users), step):
        chunk = users[start : start + step]
        reached = torch.index_select(scores, 0, chunk, out=buffer[: len(chunk)]).ge_(own[start : start + step, None])
        # Torch adds up floats ten times faster than booleans; float32 counts exactly to 16 million.
        torch.sum(reached, 1, dtype=torch.float32, out=counts[start : start + step])
    return counts.long()


def _count_excluded(
    scores: torch.Tensor, targets: torch.Tensor, own: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """How many excluded items reach each target (int64 [B, T]), and which targets are excluded (bool [B, T])."""
    if rows.shape != columns.shape or _outside(rows, 0, len(scores)) or _outside(columns, 0, scores.shape[1]):
        msg = f"excluded must be pairs of a row and a column of scores {tuple(scores.shape)}"
        raise ValueError(msg)
    distinct = (rows * scores.shape[1] + columns).unique()
    rows, columns = distinct // scores.shape[1], distinct % scores.shape[1]
    at_or_above, is_target = torch.zeros_like(targets), torch.zeros_like(targets)
    step = max(1, BLOCK // max(targets.shape[1], 1))
    for start in range(0, len(rows), step):
        row, column = rows[start : start + step], columns[start : start + step]
        index = row[:, None].expand(-1, targets.shape[1])
        at_or_above.scatter_add_(0, index, (scores[row, column][:, None] >= own[row]).long())
        is_target.scatter_add_(0, index, (column[:, None] == targets[row]).long())
    return at_or_above, is_target > 0


def _tied_targets_behind(own: torch.Tensor, reachable: torch.Tensor) -> torch.Tensor:
    """Count, for each target, the reachable targets of its user with the same score that stand behind it.

    ``own`` is float32 [B, T], ``reachable`` bool [B, T]; the answer is int64 [B, T], 0 where not reachable.
    """
    behind = torch.zeros_like(reachable, dtype=torch.int64)
    for place in range(own.shape[1] - 1):
        tied = (own[:, place + 1 :] == own[:, place, None]) & reachable[:, place + 1 :]
        behind[:, place] = tied.sum(dim=1)
    return behind * reachable
