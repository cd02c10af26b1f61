"""Prompts in: the embedded sample and the user's own files, as polars frames of one shape."""

from data.errors import UserError
from data.prompts import PROMPT_COLUMNS, fingerprint, for_split, load_all

__all__ = ["PROMPT_COLUMNS", "UserError", "fingerprint", "for_split", "load_all"]
