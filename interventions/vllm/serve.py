"""nnsight-serve on a CPU: `python -m interventions.vllm.serve MODEL --port 6677 --dtype float32 …`.

On a GPU nnsight's own command does; it knows no worker for CPUs. Whoever reaches the server runs code in it: it listens on
this machine alone unless `--host` says otherwise, and `--api-key` asks for a key.
"""

import os

from interventions.vllm.local import SETTINGS, cpu_cache, on_cpu, vllm_version


def main() -> None:
    """Serve until told to end."""
    from nnsight.modeling.vllm import VLLM
    from nnsight.modeling.vllm.serve.cli import main as serve

    vllm_version()
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", str(max(1, cpu_cache(1) >> 30)))
    kind = on_cpu()
    VLLM._WORKER_CLS, VLLM._meta_device = kind._WORKER_CLS, staticmethod(kind._meta_device)
    serve()


if __name__ == "__main__":
    main()
