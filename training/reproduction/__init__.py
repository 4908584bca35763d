"""The papers' tables on a dataset of yours: jobs.reproduce. Read settings, published, tables, trials, shared_work, search, seeds, page, run."""
