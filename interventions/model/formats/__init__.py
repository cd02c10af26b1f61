"""How a prompt is put into words for a model: formats by name, files, patterns, and what is recorded of them. Imports foreign and data."""
