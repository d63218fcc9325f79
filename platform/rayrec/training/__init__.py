"""Dataset -> Model: Ray Train around a plain torch loop."""
