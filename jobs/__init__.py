"""Thin entry points, each a Hydra app: simulate, preprocess, train, evaluate, demo. No logic lives here."""
