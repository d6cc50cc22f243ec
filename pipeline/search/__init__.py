"""A sweep: what is searched, how heads race, how one is chosen."""
