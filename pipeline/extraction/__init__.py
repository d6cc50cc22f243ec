"""Stage one: what a run will do, and doing it."""
