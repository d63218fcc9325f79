"""The architectures, each in a file of its own with its config beside it. They import torch and numpy only."""
