"""`grpokit plan`: estimates the memory, micro-batches and traffic of a run from a model's config.json."""
