"""Image files: which there are, their pixels, and the views that are made of them."""
