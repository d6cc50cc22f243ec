"""Evidence: how much of a decision comes from where in the picture."""
