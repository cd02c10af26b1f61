"""Difference in means under permuted labels: what is left of a direction when the labels mean nothing. A control."""

from interventions.fitting.contrasts import shuffled
from interventions.methods.method import Method

METHOD = Method(relabel=shuffled)
