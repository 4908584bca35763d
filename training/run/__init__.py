"""A run from its settings to its metrics.

Read settings, systems, run_folder, dataset_copy, sampled, build, continuation, trainer, validation, predict, evaluate,
journal, interrupts, malloc; then demo.
"""
