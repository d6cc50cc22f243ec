"""Heads: what they are, and how one or many are trained."""
