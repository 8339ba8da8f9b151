"""Estimates the memory, micro-batches and traffic of a run before any weight is loaded, for `grpokit plan` and profiles."""
