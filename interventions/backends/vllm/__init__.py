"""nnsight's vLLM engine: continuous batching, tensor parallelism, and a server of weights."""
