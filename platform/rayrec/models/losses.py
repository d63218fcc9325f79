from torch import nn
from torch.nn import LinearCrossEntropyOptions
from torch.nn import functional as F


class ItemLoss(nn.Module):
    def __init__(self, objective, num_items, counts):
        super().__init__()

    def forward(self, hidden, targets, table, bias=None):
        return F.linear_cross_entropy(
            hidden, table.all_rows()[1:], targets - 1, reduction="sum", options=LinearCrossEntropyOptions()
        )
