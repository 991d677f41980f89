"""Training: recipes, training photographs, calibration, the trainer."""
