"""Raw logs → dataset, in Spark. Read the modules in the order that the data takes:

fields (the catalogue: what a raw id means) → source (byte ranges of files) → parse (the byte kernel) →
vocabulary (raw id → index) → encode (values → indices) → contexts (impressions grouped under their context) →
dataset (Parquet files, manifest last) → audit (every line accounted for) → preprocess (the chain of them all).

`simulate` writes raw logs of the same layout, with the truth beside them. `manifest` is the contract with
`training/`; nothing here imports pyspark before a Spark step is called, so that reading a manifest needs no Spark.
"""
