"""Raw logs → dataset, in Spark. Each room is a package; read them in the order that the data takes:

    errors, locations   InputError, error messages for file-system errors; a path or an address as a file system
    config              the dataclasses behind conf/preprocess.yaml and its groups
    kernels             the ground of numba kernels: the cache of compiled code, loads from memory, hashes
    dataset             THE CONTRACT with training/: manifest, schema, raw id → index and back
    html                the frame and the charts of audit.html and report.html
    features            what raw ids mean: the catalogue of fields, vocabularies, moments
    chunks              the one intermediate of all sources: parsed lines, and why a line is rejected
    aliccp, events      source=aliccp: a byte parser; source=events: attribution and labels in Spark
    contexts            parsed lines → records → context rows
    storage             the files of a dataset: Parquet files, stores, locks, the commit
    spark               the session, its stages, and Java
    audit, simulate     every line accounted for; raw logs with known probabilities
    passes              one file a pass over the log, the driver's half and the tasks' half together
    preprocess          the chain of them all
    score               likewise, for scores in place of a dataset

A room imports only rooms above it in this list (docs/architecture.md; `make lint` holds it). Nothing here imports
pyspark before a Spark step is called, so that reading a manifest needs no Spark.

Suffixes of arrays in all of pipeline/: L lines · V values · F fields · R records · W words · N rows · X rejected lines.
"""
