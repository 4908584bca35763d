"""Raw logs → dataset, in Spark. Read the modules in the order that the data takes:

fields (the catalogue: what a raw id means) → source (byte ranges of files; raw_files opens them, hadoop_lines where only
Spark can) → parse (the byte kernel; raw_names, what it finds fields by) →
numbers (numeric fields, their exact moments) →
vocabulary (raw id → index; base: an earlier dataset's, extended) → count (the first pass) → encode (values → indices) → contexts (impressions grouped under their context) →
dataset (Parquet files) → audit (every line accounted for) → commit (the manifest last, by lock and store, a local_store or an object_store) → preprocess (the
chain of them all).

Timestamped shop logs take a road of their own up to the labels, and share it from there: events_settings → events_tables
(what is there) → events_json (lines taken apart) → events_read (one shape for every format) → events (attribution) → events_stage (all of it) →
events_chunks, which the vocabulary and encode read instead of parsed lines.

`simulate` writes raw logs of the same layout, with the truth beside them. `manifest` is the contract with
`training/`; nothing here imports pyspark before a Spark step is called, so that reading a manifest needs no Spark.
"""
