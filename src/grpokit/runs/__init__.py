"""The files that a run writes and reads again: checkpoints, metrics, completions, the report."""
