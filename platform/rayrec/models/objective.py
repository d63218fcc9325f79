from dataclasses import dataclass


@dataclass(frozen=True)
class Objective:
    loss: str = "softmax"
