"""The parts of same_bytes.py: what is run (cases, runs, schedule), of what (versions), and what is compared (compare).

To be imported before numpy and torch are: with one thread, sums have one order.
"""

import os

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = "1"
os.environ |= {"MPLBACKEND": "Agg", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
