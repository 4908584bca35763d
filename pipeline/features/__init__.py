"""What raw ids mean. Read fields (the catalogue), vocabulary (raw id → index), base_vocabulary, lookup_table, moments."""
