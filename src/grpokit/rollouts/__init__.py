"""Samples groups of completions for prompts, with their log-probs."""

from .sampler import Pending, Sampler, SamplingStopped, StartingSampler

__all__ = ["Pending", "Sampler", "SamplingStopped", "StartingSampler"]
