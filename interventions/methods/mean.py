"""Difference in means: v_c = mean(harmful rows of category c) − mean(benign rows of any category).

*What Do Refusal Tokens Learn?*, NeurIPS 2025 Workshop on Mechanistic Interpretability.
"""

from interventions.methods.method import Method

METHOD = Method()
