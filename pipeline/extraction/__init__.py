"""Feature extraction: its plan, and doing it."""
