"""How much single patches and layers suffer from few bits, what predicts it, and what a bit selector makes of it."""
