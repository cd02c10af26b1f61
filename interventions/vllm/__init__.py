"""nnsight's vLLM engine: continuous batching, tensor parallelism, a server of weights. Imports backends and traced."""
