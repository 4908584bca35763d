"""The same raw log through other tools: Polars streaming, DuckDB, a plain Python script; see benchmarks/preprocess.py.

All parse every feature, count the ids of the train period, cut at the minimum count, give indices by falling count,
look them up, group impressions under their context, and write one row a context with our columns in Parquet, zstd 1.
`contents` proves that the datasets hold the same numbers.

The peers do less. None checks a line (a bad one ends them or becomes a null), keeps a quarantine, looks for duplicates,
proves a balance or draws an audit; none cuts long contexts, shuffles rows, fills row groups by impressions, divides off
validation, or survives a crash. Polars streaming and DuckDB leave the impressions of a context, DuckDB the values of a
bag too, in any order (sorting them took DuckDB more than twice the time), and Python relies on a log whose impressions
of a context stand together.
"""
