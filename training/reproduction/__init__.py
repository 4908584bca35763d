"""The papers' tables on a dataset of yours: jobs.reproduce. Read settings, published, tables, trials, search, seeds, page, run."""
