"""The options that a user may set, read from flags or YAML and checked. Imports no torch."""
