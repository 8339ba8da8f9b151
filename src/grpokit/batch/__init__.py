"""Scored groups become updates with fixed weights, and updates are cut into forwards: advantages, plan, cuts, collate."""
