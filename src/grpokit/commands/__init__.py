"""The command line: one file for each `grpokit COMMAND`."""
