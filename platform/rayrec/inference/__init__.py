"""Model -> scorer: bundles, export, runtimes, top-k, Releases and the MLflow flavour. No Ray; torch only to export."""
