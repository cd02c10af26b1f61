"""What lies in a run directory: artefacts that appear whole, their records, journals and tables. Imports data alone."""
