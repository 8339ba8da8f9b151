"""grpokit: GRPO training in which every policy loss is one row of a table, and a step has one gradient.

The losses are in `grpokit.losses`, the command line in `grpokit.commands.cli`, and the whole training loop on one
screen in `grpokit.training.loop`. Nothing heavy is imported here, so that `grpokit --help` answers at once.
"""

__version__ = "0.1.0"
