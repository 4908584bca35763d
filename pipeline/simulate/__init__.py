"""Simulated Ali-CCP logs with known probabilities. Read published_figures, world, oracle, draw, lines, dirt, split, run."""
