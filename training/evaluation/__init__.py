"""The evaluation protocol. Read metrics, ranking, calibration, then report and report_charts."""
