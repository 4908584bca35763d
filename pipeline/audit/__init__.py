"""The audit of a dataset: every line is accounted for.

Read tally, balance, statistics (distinct, evidence), leakage, figures, then page (tables, charts), card and summary.
"""
