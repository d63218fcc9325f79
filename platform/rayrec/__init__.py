"""rayrec: from interaction logs to a live recommendation endpoint, on Ray, from one YAML recipe."""

import os

# Read once, when torch is imported. By default threads that wait for each other keep the cores that others need: beside
# other work an epoch took ten times as long (docs/decisions.md).
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__version__ = "0.1.0"
