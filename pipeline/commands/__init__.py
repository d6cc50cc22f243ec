"""One module per command: what it does, with its result. Only the command line and the public names import them."""
