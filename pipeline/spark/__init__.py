"""The Spark session. Read session (configuration), running (stages, progress, error messages), java, workers, daemon."""
