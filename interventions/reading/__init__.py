"""Residual activations of prompts, in batches that compute nothing twice. Imports model and what lies below it."""
