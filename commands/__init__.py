"""The commands, one module each, above the three packages; `cli.py` is their door."""
