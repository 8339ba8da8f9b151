"""Rows of a file, a folder, the Hub or memory become prompts."""
