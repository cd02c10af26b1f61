"""NDIF 0.1.2's model actor and controller on a machine without a GPU; nothing in the package is edited.

Chosen through NDIF's own settings, with this folder on PYTHONPATH of the Ray processes:
    NDIF_MODEL_IMPORT_PATH=ndif_cpu.CPUModelActor, or ndif_cpu.CPUSandboxActor, to which every key is an ordinary one
    NDIF_CONTROLLER_IMPORT_PATH=ndif_cpu.CPUControllerActor
The GPU that placement counts on is only a Ray resource (`ray start --num-gpus=1`).
"""
# It runs in the server's environment, not in ours:
# pyright: reportMissingImports=false

import inspect

import ray
import torch
from ndif.services.ray.deployments.controller.controller import _ControllerActor
from ndif.services.ray.deployments.modeling import base
from ndif.services.ray.sandbox import host
from ndif.services.ray.sandbox.model import SandboxModelDeployment
from nnsight.modeling.mixins.remotable import Remotable
from nnsight.modeling.transformers import TransformersModel

SPAWN_SECONDS = 300.0


def _drop_trust_remote_code(name):
    """Ndif 0.1.2 passes trust_remote_code=, which nnsight 0.8.1 moved into the model key."""
    method = Remotable.__dict__[name].__func__
    if "trust_remote_code" not in inspect.signature(method).parameters:  # it is there in 0.8.0
        setattr(
            Remotable,
            name,
            classmethod(lambda cls, *args, trust_remote_code=False, **kwargs: method(cls, *args, **kwargs)),
        )


for _name in ("describe_checkpoint", "max_tp_size"):
    _drop_trust_remote_code(_name)

# transformers 5.23 names the pipeline class of a task by a string, so nnsight 0.8.1 finds no preprocessor flags on it
# and its meta build (here: the size estimate) lacks the tokenizer.
TransformersModel._loaded_preprocessors = lambda self: {"tokenizer"}

# The only torch.cuda call on the request path that raises without a GPU.
torch.cuda.synchronize = lambda device=None: None
# Placement on a card: nothing to pin, cap or verify on a CPU.
for _name in ("set_default_gpu", "set_process_limits", "reset_process_limits", "verify_device_placement"):
    setattr(base, _name, lambda *args, **kwargs: None)


# A runner needs this folder, for `sitecustomize`, and on a busy CPU more than half a minute to begin.
_spawn, _acquire = host.spawn, host.Pool.acquire
host.RUNNER_ENV = (*host.RUNNER_ENV, "PYTHONPATH", "HF_HUB_OFFLINE")
host.spawn = lambda **options: _spawn(**options | {"timeout": SPAWN_SECONDS})
host.Pool.acquire = lambda self: _acquire(self, SPAWN_SECONDS)


# Plain classes, wrapped below under another name: Ray then pickles the base by reference, so that the worker process
# imports this module and the lines above run there.
class CPUModel(base.BaseModelDeployment):
    """A model on the CPU."""

    CACHEABLE = False  # parking moves weights between GPU and CPU: evict instead


class CPUSandbox(SandboxModelDeployment):
    """A model on the CPU, and everybody's code in a runner beside it."""

    CACHEABLE = False

    def execute(self, request):
        """Trust nobody: without a database of keys NDIF would trust everybody."""
        return self.run_in_runner(request, None)


class CPUController(_ControllerActor):
    """NDIF's controller."""


CPUModelActor = ray.remote(num_cpus=0, max_restarts=-1)(CPUModel)
CPUSandboxActor = ray.remote(num_cpus=0, max_restarts=-1)(CPUSandbox)
CPUControllerActor = ray.remote(num_cpus=0, max_restarts=-1, resources={"head": 1})(CPUController)
