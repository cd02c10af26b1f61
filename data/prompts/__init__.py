"""Prompts in: the embedded sample, data sets of the hub and people's own files, as frames of one shape. Imports data alone."""
