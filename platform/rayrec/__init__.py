"""rayrec: from interaction logs to a live recommendation endpoint, on Ray, from one YAML recipe."""

__version__ = "0.1.0"
