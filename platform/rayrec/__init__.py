"""rayrec: from interaction logs to a live recommendation endpoint, on Ray, from one YAML recipe."""

import os

if "OMP_WAIT_POLICY" not in os.environ:
    # Read once, when torch is imported. By default threads that wait for each other keep for long the cores that others
    # need (docs/decisions.md).
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")

__version__ = "0.1.0"
