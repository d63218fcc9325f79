"""Where interaction data comes from and how it becomes sequences."""
