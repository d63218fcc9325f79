"""Model x Dataset -> metrics."""
