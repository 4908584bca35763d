"""Parsed lines → context rows. Read records (the layout), encode, packing, buckets (which file), group, rows."""
