"""Rates, intervals and tests. Imports data and scoring."""
