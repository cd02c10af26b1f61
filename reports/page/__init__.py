"""The report: one HTML page from a run directory. Imports statistics, scoring and data."""
