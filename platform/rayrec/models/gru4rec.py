"""GRU4Rec: a recurrent network reads the history, event by event.

Hidasi, Karatzoglou, Baltrunas and Tikk, "Session-based Recommendations with Recurrent Neural Networks", ICLR 2016
(https://arxiv.org/abs/1511.06939), with items as vectors that input and output share, as in Hidasi and Karatzoglou,
"Recurrent Neural Networks with Top-k Gains for Session-based Recommendations", CIKM 2018
(https://arxiv.org/abs/1706.03847).

Differences: a batch holds whole windows of histories, whose gradients go back to their first event, instead of one
event each of sessions that run in parallel; the objective is the recipe's (full softmax unless it says otherwise);
items have no bias; a projection brings states to the width of item vectors where they differ; LSTM cells may be had.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from rayrec.models.checks import require
from rayrec.models.embedding import ReplicatedTable
from rayrec.models.sequence import SequenceModel

LARGEST = 16_384
"""Beyond it a setting is a typing error."""
CELLS: dict[str, type[nn.GRU | nn.LSTM]] = {"gru": nn.GRU, "lstm": nn.LSTM}
ONNX_GATES = {"gru": (1, 0, 2), "lstm": (0, 3, 1, 2)}
"""Where torch keeps the gates that ONNX wants, in its order: update, reset, new; input, output, forget, cell."""


@dataclass(frozen=True)
class GRU4RecConfig:
    """The architecture.

    Attributes:
        dim: Width of item vectors.
        hidden: Width of the recurrent state.
        layers: Recurrent layers, each reading the states of the one before.
        cell: ``gru``, or ``lstm`` (Hochreiter and Schmidhuber, 1997).
        dropout: Share of the values of item vectors, and of each layer's states, dropped while training.
        max_length: How many of the latest events are read.
    """

    dim: int = 64
    hidden: int = 128
    layers: int = 1
    cell: Literal["gru", "lstm"] = "gru"
    dropout: float = 0.3
    max_length: int = 200

    def __post_init__(self) -> None:
        for name in ("dim", "hidden", "layers", "max_length"):
            size = getattr(self, name)
            require(1 <= size <= LARGEST, f"{name} must be at least 1 and at most {LARGEST}, not {size}")
        require(self.cell in CELLS, f"cell must be one of {', '.join(CELLS)}, not {self.cell}")
        require(0.0 <= self.dropout < 1.0, f"dropout must be at least 0 and below 1, not {self.dropout}")


class Recurrent(nn.Module):
    """One layer of GRU or LSTM cells, which starts from a state of zeros."""

    def __init__(self, cell: Literal["gru", "lstm"], inputs: int, hidden: int) -> None:
        super().__init__()
        self.cell = cell
        self.layer = CELLS[cell](inputs, hidden, batch_first=True)

    def forward(self, events: Tensor) -> Tensor:
        """``[B, L, inputs]`` to the state after each event, ``[B, L, hidden]``."""
        if torch.onnx.is_in_onnx_export():
            return self._onnx(events)
        states: Tensor = self.layer(events)[0]
        return states

    def _onnx(self, events: Tensor) -> Tensor:
        """ONNX's own operator: as torch 2.13 traces its own, the length is frozen from a process's second export on."""
        of_event, of_state, *biases = (_in_order(self.cell, each).unsqueeze(0) for each in self.layer.all_weights[0])
        # As torch computes a GRU: the reset gate acts on what the state became, not on the state.
        reset = {"linear_before_reset": 1} if self.cell == "gru" else {}
        states = torch.onnx.ops.symbolic(
            self.cell.upper(),
            (events.transpose(0, 1), of_event, of_state, torch.cat(biases, 1)),
            {"hidden_size": self.layer.hidden_size, **reset},
            dtype=events.dtype,
            shape=(events.shape[1], 1, events.shape[0], self.layer.hidden_size),  # one direction
        )
        return states.squeeze(1).transpose(0, 1)


def _in_order(cell: Literal["gru", "lstm"], weight: Tensor) -> Tensor:
    """Weights whose rows are gate after gate, in ONNX's order of gates."""
    gates = ONNX_GATES[cell]
    return weight.unflatten(0, (len(gates), -1))[list(gates)].flatten(0, 1)


class GRU4Rec(SequenceModel):
    """Recurrent layers over item vectors, with an output tied to the item table.

    Example::

        >>> model = GRU4Rec(GRU4RecConfig(max_length=4), num_items=10).eval()
        >>> model.score(torch.tensor([[0, 0, 3, 7]])).shape
        torch.Size([1, 11])
    """

    kind = "gru4rec"
    Config = GRU4RecConfig

    def __init__(self, config: GRU4RecConfig, num_items: int) -> None:
        super().__init__()
        self.config = config
        self.num_items = num_items
        self.item = ReplicatedTable(num_items + 1, config.dim)
        inputs = [config.dim, *[config.hidden] * (config.layers - 1)]
        self.layers = nn.ModuleList(Recurrent(config.cell, width, config.hidden) for width in inputs)
        self.dropout = nn.Dropout(config.dropout)
        same = config.hidden == config.dim
        self.projection = nn.Identity() if same else nn.Linear(config.hidden, config.dim)

    def states(self, history: Tensor, times: Tensor | None = None) -> Tensor:
        """See `SequenceModel.states`."""
        states: Tensor = self.projection(self._read(history))
        return states

    def latest(self, history: Tensor, times: Tensor | None = None) -> Tensor:
        """See `SequenceModel.latest`: read from the first event on, as if there were no padding before it."""
        length = history.shape[1]
        events = (history != 0).sum(1, keepdim=True)
        places = torch.arange(length, device=history.device) + length - events
        states = self._read(history.gather(1, places.clamp(max=length - 1)))
        last = (events - 1).clamp(min=0).unsqueeze(2).expand(-1, -1, self.config.hidden)
        state: Tensor = self.projection(states.gather(1, last).squeeze(1))
        return state

    def _read(self, history: Tensor) -> Tensor:
        """``[B, L]`` int64, padded at the end, to the last layer's states ``[B, L, hidden]``."""
        states: Tensor = self.dropout(self.item.lookup(history))
        for layer in self.layers:
            states = self.dropout(layer(states))
        return states
