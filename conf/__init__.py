"""Hydra configurations: one file a job, and groups of a few lines each (features, source, model, …)."""
