"""Gates, one file each: which prompt gets which strength. Imports fitting, reading and below."""
