"""Helpers that every room may use: text, imports of user files, models of the Hub, keyed noise, the console."""

VERSION = "0.1.0"
