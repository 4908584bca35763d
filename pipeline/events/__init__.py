"""source=events. Read tables (the files), json_lines and read (one shape for every format), attribute, label, reader, id_texts."""
