"""The files of a dataset: written, locked, committed, removed.

Read store (the interface), local_store, object_store, lock, parquet_files, commit.
"""
