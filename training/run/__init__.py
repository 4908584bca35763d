"""A run from its settings to its metrics. Read settings, run_folder, build, trainer, validation, evaluate, journal, interrupts, malloc; then demo."""
