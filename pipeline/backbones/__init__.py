"""Pretrained networks: their weights, and how they compute."""
