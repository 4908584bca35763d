"""The kinds of fields, one file each. Read field_kind (the interface), registry, then any kind."""
