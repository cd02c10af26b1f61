"""vLLM in this process or in workers of its own, on this machine's devices."""

# vLLM is no dependency of the project; where it is installed, an environment of its own holds it.
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false

import contextlib
import logging
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from types import CodeType
from typing import Any
from unittest import mock

import torch
from cloudpickle.cloudpickle import _PICKLE_BY_VALUE_MODULES
from nnsight.modeling.vllm.registration import RegisteringTracer

from data.errors import UserError, cause_of
from interventions.backends.vllm.engine import Asking, Reply

logger = logging.getLogger(__name__)

TRIED = {"nnsight": ("0.8.1",), "vllm": ("0.27.1",)}  # versions that `parity` was run with
CPU_CACHE = 4 << 30  # bytes of keys and values on a CPU, at most, where VLLM_CPU_KVCACHE_SPACE doesn't say
PREEMPTIONS = "vllm:num_preemptions"  # vLLM's counter
SETTINGS = {
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # `auto` leaves a core idle
}


def vllm_version() -> str:
    """The installed version of vLLM, by whichever name it was built for.

    Raises:
        UserError: There is none, or one that this was not tried with.
    """
    for name in ("vllm", "vllm-cpu"):
        with contextlib.suppress(PackageNotFoundError):
            found = version(name)
            break
    else:
        raise UserError(
            "--engine vllm needs vLLM, which isn't installed here: `make vllm` makes an environment of its own, .venv-vllm"
        )
    own = {"vllm": found.partition("+")[0], "nnsight": version("nnsight")}
    odd = [f"{name} {own[name]} (tried: {', '.join(known)})" for name, known in TRIED.items() if own[name] not in known]
    if odd:
        raise UserError(
            f"--engine vllm was not tried with {' and '.join(odd)}: `make vllm` installs what it was, into .venv-vllm"
        )
    return found


class Local:
    """An engine that this process opened."""

    tells = True

    def __init__(self, source: str, dtype: str, device: str, settings: Mapping[str, Any]) -> None:
        """Load the weights.

        Args:
            source: Folder or hub id.
            dtype: vLLM's name of the weights' type.
            device: `cpu` or `cuda`.
            settings: `tensor_parallel_size`, `max_num_seqs`, `max_model_len`.

        Raises:
            UserError: vLLM can't run the model.
        """
        found = vllm_version()
        ranks = settings["tensor_parallel_size"]
        for name, value in SETTINGS.items():
            os.environ.setdefault(name, value)
        if device == "cpu" and ranks == 1:  # three processes that each import vLLM take 17 CPU seconds more
            os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        if device == "cpu" and "VLLM_CPU_KVCACHE_SPACE" not in os.environ:
            settings = {**settings, "kv_cache_memory_bytes": cpu_cache(ranks)}
        self.network = _opened(source, device, dtype=dtype, **settings)
        self.record: Mapping[str, Any] = {"engine": "vllm", "vllm": found, "dtype": dtype, "tensor_parallel": ranks}

    def edit(self, *, name: str) -> Any:
        """What installs a block under a name."""
        return _Installing(self.network, name=name)

    def ask(self, requests: Sequence[Asking], tokens: int, stops: Sequence[int]) -> list[Reply]:
        """As `Transport` says; a request that lost its cache on the way would go on unsteered, and is asked again."""
        found: list[Reply | None] = [None] * len(requests)
        todo, most = list(range(len(requests))), len(requests)
        while todo:
            now, todo = todo[:most], todo[most:]
            before = self._preemptions()
            outputs = self._generate([requests[at] for at in now], tokens, stops)
            if self._preemptions() > before and any(requests[at].edit for at in now):
                if len(now) == 1:
                    raise UserError(
                        "vLLM's cache can't hold a single request: pass a smaller --max-model-len, or VLLM_CPU_KVCACHE_SPACE"
                    )
                most = max(1, len(now) // 2)
                logger.warning("vLLM ran out of cache and dropped requests on the way: asking again, %d at once", most)
                todo = now + todo
                continue
            for at, output in zip(now, outputs, strict=True):
                found[at] = _reply(output)
        return [reply for reply in found if reply is not None]

    def _generate(self, requests: Sequence[Asking], tokens: int, stops: Sequence[int]) -> list[Any]:
        from vllm import SamplingParams
        from vllm.inputs import TokensPrompt

        prompts = [TokensPrompt(prompt_token_ids=one.ids) for one in requests]
        params = [
            SamplingParams(
                temperature=0.0,
                max_tokens=tokens,
                stop_token_ids=list(stops),
                ignore_eos=True,  # `stops` says all that ends an answer
                detokenize=False,
                extra_args={"nnsight_edits": [one.edit] if one.edit else []},
            )
            for one in requests
        ]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of loops over all steps, that they ended
            try:
                return self.network.vllm_entrypoint.generate(prompts, params, use_tqdm=False)
            except Exception as error:  # whatever vLLM's engine dies of
                raise UserError(f"vLLM failed: {cause_of(error)}") from error

    def _preemptions(self) -> int:
        """How often vLLM has dropped a request's cache so far."""
        return sum(int(one.value) for one in self.network.vllm_entrypoint.get_metrics() if one.name == PREEMPTIONS)


class _Installing(RegisteringTracer):
    """A block that crosses with references to this project's functions: its source, which NDIF needs, takes a second to gather."""

    def execute(self, code: CodeType) -> None:
        with _by_reference():
            super().execute(code)


@contextlib.contextmanager
def _by_reference() -> Iterator[None]:
    known = _PICKLE_BY_VALUE_MODULES & {"interventions"}
    _PICKLE_BY_VALUE_MODULES.difference_update(known)
    try:
        yield
    finally:
        _PICKLE_BY_VALUE_MODULES.update(known)


def _reply(output: Any) -> Reply:
    error = getattr(output, "nnsight_error", None)
    if error is not None:
        raise UserError(f"a block failed in vLLM's worker: {str(error.get('message', error))[:300]}")
    return Reply(list(output.outputs[0].token_ids), dict(getattr(output, "saves", None) or {}))


def _opened(source: str, device: str, **settings: Any) -> Any:
    from nnsight.modeling.vllm import VLLM

    kind = on_cpu() if device == "cpu" else VLLM
    try:
        return kind(
            source,
            dispatch=True,
            trust_remote_code=False,
            disable_log_stats=False,
            generation_config="vllm",
            **settings,
        )
    except Exception as error:  # whatever vLLM makes of a model
        raise UserError(f"vLLM can't open {source}: {cause_of(error)}; --engine transformers may") from error


def cpu_cache(ranks: int) -> int:
    """Bytes of keys and values of each rank on a CPU: a quarter of the free memory at most."""
    import psutil

    return min(CPU_CACHE, psutil.virtual_memory().available // (4 * ranks))


def on_cpu() -> Any:
    """nnsight's VLLM with a worker for CPUs."""
    from nnsight.modeling.vllm import VLLM

    class OnCPU(VLLM):
        _WORKER_CLS = "interventions.backends.vllm.worker.NNsightCPUWorker"
        _meta_device = staticmethod(no_accelerator)

    return OnCPU


@contextlib.contextmanager
def no_accelerator() -> Iterator[None]:
    """Where a tree without weights is built on a machine without a GPU: vLLM's loader empties an accelerator's cache, and there is none."""
    nothing = mock.Mock()
    with (
        mock.patch.object(torch.accelerator, "empty_cache", nothing),
        mock.patch.object(torch.accelerator, "synchronize", nothing),
    ):
        yield
