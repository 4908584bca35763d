"""The contract with training/: manifest (what a dataset is), schema (its columns), decode (index → raw id), arrow_columns."""
