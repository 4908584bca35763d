"""Parquet → batches. Read plan, sampling, columns, dataset_files, column_reader, parquet_pages, checked_columns, row_groups,
petastorm_reader, feed, collate, batch, device_copy."""
