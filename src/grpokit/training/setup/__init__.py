"""Sets up a run from its configuration: data, models, samplers, loss, and what to announce."""
