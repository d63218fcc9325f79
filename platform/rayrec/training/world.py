"""One worker among all: what it exchanges with the others."""

from __future__ import annotations

import resource
import sys
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, distributed


@dataclass(frozen=True)
class World:
    """This worker among all: its rank, their number, and its device."""

    rank: int = 0
    size: int = 1
    device: torch.device = torch.device("cpu")

    @property
    def part_overhead(self) -> int:
        """What a further part of a batch costs on this device, in tokens (see `rayrec.training.feed.like_lengths`)."""
        return 16_384 if self.device.type == "cuda" else 256

    @property
    def memory(self) -> int:
        """The most bytes that were held at once so far: of the GPU by tensors, of a CPU by the whole process."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        # Linux counts it in kilobytes.
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

    def sum(self, values: list[float]) -> list[float]:
        """``values`` summed over the workers."""
        if self.size == 1:
            return values
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        distributed.all_reduce(tensor)
        return cast("list[float]", tensor.tolist())

    def sum_rows(self, rows: Tensor) -> Tensor:
        """Sparse matrices summed over the workers, of which only what is in them travels.

        Args:
            rows: ``[N, D]`` ``sparse_coo`` with one sparse dimension; what is in it may differ between workers.

        Returns:
            ``[N, D]``, coalesced, with the same bits on every worker.
        """
        mine = rows.coalesce()
        if self.size == 1:
            return mine
        places, values = mine.indices()[0], mine.values()
        sizes = [torch.zeros(1, dtype=torch.int64, device=self.device) for _ in range(self.size)]
        distributed.all_gather(sizes, torch.tensor([len(places)], device=self.device))
        counts = [int(size) for size in sizes]
        indices = torch.cat(self._gather(places, counts)).unsqueeze(0)
        found = torch.cat(self._gather(values, counts))
        return torch.sparse_coo_tensor(indices, found, rows.shape, check_invariants=False).coalesce()

    def _gather(self, mine: Tensor, counts: list[int]) -> list[Tensor]:
        """Every worker's tensor, whose lengths differ: all are as long as the longest while they travel."""
        padded = mine.new_zeros(max(counts), *mine.shape[1:])
        padded[: len(mine)] = mine
        received = [torch.empty_like(padded) for _ in counts]
        distributed.all_gather(received, padded)
        return [tensor[:count] for tensor, count in zip(received, counts, strict=True)]
