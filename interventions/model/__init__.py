"""A model, its tokens and its prompt format: opening it, finding its blocks, encoding prompts. Imports backends, traced and data."""
