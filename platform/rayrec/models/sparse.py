"""Sparse matrices as parts of models."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from rayrec.models.interactions import SparseRows


class SparseMatrix(nn.Module):
    """A constant sparse matrix in CSR form, saved with the model; empty until it is filled or loaded.

    Example::

        >>> matrix = SparseMatrix()
        >>> matrix.fill(SparseRows.of(np.array([0, 1]), np.array([2, 0]), np.array([1.0, 2.0]), height=2, width=3))
        >>> matrix.times(torch.tensor([[1.0], [0.0], [5.0]]))
        tensor([[5.],
                [2.]])
    """

    offsets: Tensor
    columns: Tensor
    values: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("offsets", torch.zeros(1, dtype=torch.int64))
        self.register_buffer("columns", torch.zeros(0, dtype=torch.int64))
        self.register_buffer("values", torch.zeros(0))

    @property
    def height(self) -> int:
        """Number of rows."""
        return len(self.offsets) - 1

    def fill(self, rows: SparseRows) -> None:
        """Take over what is in ``rows``."""
        self.offsets, self.columns = torch.from_numpy(rows.offsets), torch.from_numpy(rows.columns)
        self.values = torch.from_numpy(rows.values)

    def times(self, dense: Tensor) -> Tensor:
        """The product with a matrix: ``[columns, B]`` float32 to ``[height, B]``."""
        with warnings.catch_warnings():
            # That sparse tensors may change in later versions of torch; constraints.txt pins it.
            warnings.simplefilter("ignore")
            size = (self.height, len(dense))
            csr = torch.sparse_csr_tensor(self.offsets, self.columns, self.values, size, check_invariants=False)
        product: Tensor = csr @ dense
        return product

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """An empty matrix takes the size of what is loaded."""
        for name in ("offsets", "columns", "values"):
            if (loaded := state_dict.get(f"{prefix}{name}")) is not None:
                setattr(self, name, torch.empty_like(loaded, device=getattr(self, name).device))
        super()._load_from_state_dict(state_dict, prefix, *rest)
