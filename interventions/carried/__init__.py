"""Steering carried into other programs: files, weights, hooks, lm-eval. Imports steering and below."""
