"""A model behind HTTP: the program, the queue that batches requests, and one page."""
