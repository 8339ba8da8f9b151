"""grpokit's losses inside other trainers: `trl.py` has TRL's GRPOTrainer with any of them, `verl.py` loss modes for verl."""
