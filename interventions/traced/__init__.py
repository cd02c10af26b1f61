"""What runs inside a trace, here or on a server. Imports torch, transformers, nnsight and this folder, nothing else of the project."""
