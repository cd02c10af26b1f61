"""In a runner of NDIF's sandbox: what `ndif_cpu` does in the model's process, which a runner does not import."""

import sys

if any("sandbox.runner" in word for word in sys.orig_argv):
    from nnsight.modeling.transformers import TransformersModel

    TransformersModel._loaded_preprocessors = lambda self: {"tokenizer"}
