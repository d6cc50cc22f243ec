"""Images of none of the classes: a score of how unlike the training images a picture is, and what it is worth."""
