"""The commands, one file each: a file here is a command. What they share is in `framework`. Imports interventions, reports and data."""
