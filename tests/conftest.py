"""Settings that all tests share."""

from __future__ import annotations

import os

# One thread: the models here are tiny, and a run of the suite uses a process per core.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch
from hypothesis import settings

pytest.register_assert_rewrite("helpers")

torch.set_num_threads(1)
settings.register_profile("default", deadline=None, print_blob=True)
settings.load_profile("default")
