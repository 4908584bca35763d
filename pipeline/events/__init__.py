"""source=events. Read tables, json_lines and read (one shape for every format), times, joins, rows, attribute, label, reader, id_texts."""
