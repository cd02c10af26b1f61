"""Which prompt gets what: gates and how they carry over, and whose vector is added. Imports page, statistics, scoring and data."""
