"""Steering methods, one file each: how a direction is fitted and what it adds. Imports fitting, reading and below."""
