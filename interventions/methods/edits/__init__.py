"""Methods that are no vector a category, one file each: tensors of their own, and what they do to the residual stream."""
