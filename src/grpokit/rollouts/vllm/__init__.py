"""vLLM as the engine that samples: a server, or in the trainer's process."""
