"""Contrastive: v_c = mean over prompts of category c of (h(prompt + [c]) − h(prompt + [respond])), at the appended token.

arXiv 2603.13359. Prompt and content cancel; what is left is the token's own effect in context.
"""

from interventions.methods.method import Method

METHOD = Method(is_paired=lambda _rows: True)
