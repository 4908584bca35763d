"""GBDT, the one competitor of ESM² that is no network: jobs.gbdt. Read settings, features, trees, run."""
