"""The exported model: its file, its card, and the parity check against the run."""
