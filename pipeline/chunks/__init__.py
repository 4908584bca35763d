"""The one intermediate of all sources.

Read sources (files and input splits), files (how they are opened), line_columns, reasons, chunk.
"""
