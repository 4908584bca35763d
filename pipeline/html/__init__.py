"""The pages that people read.

page.py renders the templates of this folder, charts.py computes what an SVG chart draws.
"""
