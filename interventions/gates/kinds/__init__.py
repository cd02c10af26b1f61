"""Kinds of gates, one file each: how it is fitted, its formula and source."""
