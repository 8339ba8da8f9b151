"""Helpers that every room may use: text, imports of user files, keyed noise, the console."""
