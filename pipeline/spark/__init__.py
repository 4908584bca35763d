"""The Spark session. Read session (configuration), running (stages, progress, errors as sentences), java, workers."""
