"""Training beside torch-rechub and DeepCTR-Torch: the same impressions, network and batch, one thread.

`inputs` makes their padded arrays from our Parquet files, `libraries` trains one of them (in its own environment),
`ours` trains this project's model, and `__main__` runs all of it and prints the table.
"""
