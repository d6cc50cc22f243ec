"""How good predictions are: accuracies with intervals, calibration, groups of images that are not independent."""
