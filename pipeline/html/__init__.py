"""Pages that people look at: frame (one HTML file, no scripts) and charts (inline SVG)."""
