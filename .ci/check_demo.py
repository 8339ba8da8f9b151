"""check_demo.py RUN ACCURACY: the demo's sampled accuracy must have risen to at least ACCURACY."""

import json
import sys
from pathlib import Path

run, wanted = Path(sys.argv[1]), float(sys.argv[2])
evaluations = [json.loads(line) for line in (run / "evaluations.jsonl").read_text().splitlines()]
before, after = (evaluations[i]["eval/pass@1"] for i in (0, -1))
print(f"sampled accuracy: {before:.3f} before, {after:.3f} after; at least {wanted} is wanted")
expected = ["report.html", "final/model.safetensors", "metrics.jsonl", "completions.jsonl", "config.yaml"]
missing = [name for name in expected if not (run / name).exists()]
sys.exit(f"missing: {missing}" if missing else 0 if before < 0.5 and after >= wanted else 1)
