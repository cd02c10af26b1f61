"""Results of an NDIF server: tensors and plain values, nothing that runs."""

import io
from typing import Any

import torch


def load_result(content: bytes) -> Any:
    """Read a result: tensors and plain values only, so that a server can't run code here."""
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
