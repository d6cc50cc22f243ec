"""Rows of a cache for training: which there are, and the linear maps a head is trained behind."""
