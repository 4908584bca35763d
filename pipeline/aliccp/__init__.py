"""source=aliccp.

Read find (files), byte_ranges (splits), parse (the byte kernel; ascii_numbers, field_probe), reader, spark_lines,
action_log.
"""
