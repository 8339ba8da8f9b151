"""vLLM as the sampling engine: a server, or an engine in the trainer's process."""
