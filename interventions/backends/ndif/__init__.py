"""An NDIF server: reaching it, what it says of itself, one trace as a request to it. Imports data."""
