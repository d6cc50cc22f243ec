"""What leaves: the card of a model file, its calibration, and the gate it goes through."""
