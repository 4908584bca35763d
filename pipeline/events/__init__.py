"""source=events. Read tables (what is there), json_lines and read (one shape for every format), attribute, label, reader, id_texts."""
