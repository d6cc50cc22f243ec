"""Images that show the same picture: which they are, and from which likeness on."""
