"""Checkpoints: the state of a run on disk. Read files (format and commit), save (beside training), restore, carry_over (init_from)."""
