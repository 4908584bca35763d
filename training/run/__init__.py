"""A run from its settings to its metrics.

Read settings, run_folder, dataset_copy, build, continuation, trainer, validation, evaluate, journal, interrupts, malloc;
then demo.
"""
