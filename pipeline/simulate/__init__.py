"""Simulated Ali-CCP logs with known probabilities. Read published_figures, world, truth, draw, lines, dirt, split, run."""
