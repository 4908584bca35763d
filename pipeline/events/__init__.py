"""source=events: tables of events → labelled impressions. Read in this order:

find            the tables of a log, before Spark starts: table_files, table_columns, lake_tables, catalog_tables, check_columns
parse_tables    tables that Spark does not read right, in tasks: csv_kernel, csv_rows, json_lines, parquet_rows, text_input
read, times     columns as ids, numbers, lists and times, whatever the format; joins, rejected_lines
rows            what a row is; attribute, label: which impression an action belongs to; outcomes, doubts, causes
reader          labelled impressions as chunks for the next stages; id_texts
"""
