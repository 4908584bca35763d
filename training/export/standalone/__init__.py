"""Files that are copied into an export: scoring (raw values → probabilities) and server (a reference, over HTTP)."""
