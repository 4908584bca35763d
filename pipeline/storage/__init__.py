"""How files come to be there. Read store (the interface), local_store, object_store, lock, parquet_files, commit."""
