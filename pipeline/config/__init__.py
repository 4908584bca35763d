"""The settings of jobs.preprocess, as dataclasses; conf/ has the same tree as YAML. Read preprocess, then features and events."""
