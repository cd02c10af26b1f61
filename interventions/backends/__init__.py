"""Where a trace runs: in this process, shipped and rebuilt in it, or on an NDIF server. Imports data."""
