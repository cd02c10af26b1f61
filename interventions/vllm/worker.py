"""nnsight inside vLLM's CPU worker; imported by vLLM, in its own process.

nnsight 0.8.1 ships a worker for GPUs alone. Its model runner adds behaviour to vLLM's GPU runner and no state, and
vLLM's CPU runner derives from that same GPU runner, so that nnsight's stands before either: the method resolution order is
nnsight's runner, CPUModelRunner, GPUModelRunner. Nothing else is needed to offer it upstream.
"""

# vLLM is no dependency of the project; where it is installed, an environment of its own holds it.
# pyright: reportMissingImports=false

from nnsight.modeling.vllm.model_runners.GPUModelRunner import NNsightGPUModelRunner
from nnsight.modeling.vllm.workers.GPUWorker import NNsightGPUWorker
from vllm.v1.worker.cpu_model_runner import CPUModelRunner
from vllm.v1.worker.cpu_worker import CPUWorker


class NNsightCPUModelRunner(NNsightGPUModelRunner, CPUModelRunner):
    """vLLM's CPU runner with nnsight's interventions in its forward pass."""


class NNsightCPUWorker(NNsightGPUWorker, CPUWorker):
    """vLLM's CPU worker, whose runner serves nnsight's blocks."""

    def init_device(self) -> None:
        """As vLLM's; then the runner becomes nnsight's, as nnsight's own GPU worker does it."""
        CPUWorker.init_device(self)  # not nnsight's, which refuses every runner but the GPU's
        if type(self.model_runner) is not CPUModelRunner:
            raise NotImplementedError(
                f"vLLM built a {type(self.model_runner).__name__}, which nnsight was not tried with"
            )
        self.model_runner.__class__ = NNsightCPUModelRunner
