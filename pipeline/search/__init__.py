"""Sweeps: the search space, successive halving, the choice."""
