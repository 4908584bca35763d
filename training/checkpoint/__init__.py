"""Checkpoints: the state of a run on disk.

Read meta and tensors (format), files (commit), save (beside training), restore, carry_over (init_from).
"""
