"""What the pages that people look at share, and nothing else: `frame` (style and skeleton), `charts` (inline SVG).

A page is one file without script or outside resource, light or dark as the reader's system is set. Both pipeline/ (the
audit) and training/ (the report) draw with it; it imports neither.
"""
