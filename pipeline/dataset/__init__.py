"""The contract with training/: manifest (what a dataset is), schema (its columns), raw_ids and lookup_table (raw id →
index), decode (index → raw id), arrow_columns.

named_files and json_text: what is checked of every file that a manifest or checkpoint names, and of every JSON text.
"""
