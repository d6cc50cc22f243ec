"""Labelling: possible label errors, what to label next, the session behind the page, and its service."""
