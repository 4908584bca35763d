"""Simulated logs with known probabilities: Ali-CCP's layout, and a shop's tables.

Read published_figures, world, oracle, draw, lines, dirt, split, run; then shop/.
"""
