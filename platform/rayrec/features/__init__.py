"""Fitted transforms: the same code in prepare, train and serve. No Ray."""
