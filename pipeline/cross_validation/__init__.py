"""Cross-validation from a cache: folds by group, each with a basis and a head of its own, and what they predict."""
