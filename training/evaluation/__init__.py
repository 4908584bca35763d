"""The evaluation protocol.

Read metrics (what is computed), sorted_scores and exact_sums (how), ranking and calibration; users, intervals and slices;
observed_rate, health and calibrators; then prediction_files, report and report_charts; comparison sets runs side by side.
"""
