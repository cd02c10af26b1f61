"""Opening a model: by alias, hub id or local folder, with its decoder blocks found and checked."""

# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false, reportPrivateUsage=false

import logging
from collections.abc import Mapping
from dataclasses import replace
from operator import attrgetter
from pathlib import Path
from typing import Any

import nnsight
import torch
from huggingface_hub import try_to_load_from_cache
from nnsight.modeling.huggingface import _ID_CACHE
from nnsight.modeling.transformers import TransformersModel
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils.logging import disable_progress_bar

from data.contract import QUANTISED, UNQUANTISED
from data.errors import UserError, cause_of
from data.store.files import is_full, no_room
from interventions.backends.backend import LOCAL, Backend, open_backend
from interventions.backends.ndif.server import RUNNING, deployments
from interventions.backends.vllm.opening import check_versions, open_engine
from interventions.model.blocks import check_blocks, decoder_path
from interventions.model.embedded import ALIASES, TUNED, embedded_folder
from interventions.model.foreign.checkpoint import check_files, check_kind, check_sizes, every_weight, quantised
from interventions.model.foreign.rendering import check_template
from interventions.model.formats.choice import PromptFormat, set_format
from interventions.model.kinds import places_of, rules_of, warn_of_rules
from interventions.model.model import Model
from interventions.model.placing.device_map import (
    WORDS,
    check_entrance,
    devices_named,
    offload_room,
    offloaded_parts,
    read_map,
)
from interventions.model.placing.quantised import quantiser
from interventions.model.revision import known_revision
from interventions.traced.blocks import stream_dtype

FLOATS = ("torch.float32", "torch.bfloat16", "torch.float16", "torch.float64")
logger = logging.getLogger(__name__)
# An installed package is no local module to nnsight, but its code must travel with a trace all the same.
nnsight.register("interventions")

DEFAULT_MODEL = TUNED
LARGE = 1e9  # bytes of weights, from which on loading them is said


def open_model(
    name: str = DEFAULT_MODEL,
    *,
    remote: bool | str | Backend = False,
    device: str | None = None,
    dtype: str | None = None,
    prompt_format: PromptFormat | None = None,
    follow: bool = False,
    device_map: str | Mapping[str, Any] | None = None,
    offload_folder: Path | None = None,
    quantize: str = UNQUANTISED,
) -> Model:
    """Open a model by alias (`refusal-smollm2`, `smollm2`), hub id or local folder.

    Args:
        name: What to open.
        remote: False runs traces here; "local" ships and rebuilds each trace in-process first; an address, or True
            for nnsight's configured host, runs them on an NDIF server and loads no weights here; or an open backend,
            such as one whose `vllm` says how a vLLM engine is opened.
        device: torch device; default CUDA if there is any, else the CPU.
        dtype: `float32`, `bfloat16`, `float16`; default float32 on a CPU, the checkpoint's own elsewhere.
        prompt_format: How prompts are put into words; default the tokenizer's own template.
        follow: Whether answers follow what the model's generation_config asks of greedy decoding, such as
            `repetition_penalty`, as transformers' `generate` does.
        device_map: Instead of `device`, accelerate's map of the weights over several devices, memory and disk: `auto`,
            `balanced`, …, a device, a JSON file, or modules' paths -> devices, `cpu` or `disk`. Numbers stay the same.
        offload_folder: For weights on disk that can't be read from the checkpoint as they are; default one in the cache
            folder that goes with the process.
        quantize: `8bit` or `4bit` holds the weights of linear layers in so many bits; numbers are others.

    Raises:
        UserError: No such model, no access to it, a checkpoint that is not whole, an unknown device, map or type, or decoder blocks that
            can't be found or don't have the shape that steering needs.
    """
    backend = remote if isinstance(remote, Backend) else _backend(remote)
    is_here = name in ALIASES or Path(name).is_dir()
    if backend.is_remote and is_here and not backend.is_loopback:
        raise UserError(f"model {name!r} lives on this machine; pass --model with a hub id")
    source = str(embedded_folder(name)) if name in ALIASES else name
    device, places = _places(backend, device, device_map, quantize)
    weights = _checked_dtype(dtype, device)
    offloaded = None
    disable_progress_bar()
    logging.getLogger("accelerate").setLevel(logging.ERROR)  # what lies on disk is said below
    if not is_here and not _is_cached(name):
        logger.warning("model %r is no folder here: asking the hub", name)
    folder = Path(source) if is_here else None
    check_kind(Path(name))
    if folder is not None:
        check_files(folder)
    try:
        # Code out of somebody's folder never runs: without the word, transformers asks on stdin.
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
        check_sizes(config, name, folder)
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        check_template(tokenizer, name)
        set_format(tokenizer, prompt_format or PromptFormat(), name, logger.warning)
        options: dict[str, Any] = {"task": "text-generation", "tokenizer": tokenizer, "trust_remote_code": False}
        if backend.has_module:
            _say_what_is_loaded(name, source, device if places is None else f"what the device map {device_map} names")
            if quantize != UNQUANTISED:
                options["quantization_config"] = quantiser(quantize, config, name, weights)
                places = places or {"": device}  # quantised weights can't be moved later
            if places is None:
                options["device"] = device
            else:
                folder, offloaded = offload_room(offload_folder)
                options |= {"device_map": places, "offload_folder": folder}
            wrapped = _with_weights(name, source, options | {"dispatch": True, "dtype": weights})
        else:
            if backend.is_remote and is_here:
                # A folder has no hub id to ask for; a server on this machine opens the folder.
                source = str(Path(source).resolve())
                _ID_CACHE[source] = source
            wrapped = TransformersModel(source, **options)
    except UserError:
        raise
    except Exception as error:  # whatever transformers makes of a damaged file
        raise UserError(_cannot_open(name, error)) from error
    module: Any = wrapped._module
    module.requires_grad_(False)
    module.eval()
    if module.generation_config.pad_token_id is None:
        module.generation_config.pad_token_id = tokenizer.pad_token_id
    warn_of_rules(module.generation_config, name, follow)
    tokenizer.model_max_length = places_of(config, name)
    path = decoder_path(module, name)
    if backend.vllm is not None:
        engine = open_engine(source, name, module, path, weights, device, backend.vllm, tokenizer)
        backend = replace(backend, engine=engine)
    tokenizer.table_rows = module.get_input_embeddings().weight.shape[0]
    if backend.has_module:
        check_blocks(module, module.get_submodule(path), name)
    layers = attrgetter(path)(wrapped)
    revision = known_revision(name) or getattr(config, "_commit_hash", None) or ""
    model = Model(
        nnsight=wrapped,
        module=module,
        tokenizer=tokenizer,
        layers=layers,
        name=name,
        revision=revision,
        dtype=_held_dtype(backend, source, wrapped, layers).removeprefix("torch."),
        backend=backend,
        rules=rules_of(module, name) if follow else {},
        quantized=UNQUANTISED if backend.is_remote else quantize,
        offloaded=offloaded,
    )
    if backend.is_remote and quantize != UNQUANTISED:
        logger.warning("the server holds %s as it does; --quantize %s does not change that", name, quantize)
    is_served = backend.is_remote or (backend.vllm is not None and bool(backend.vllm.serve))
    if is_served and dtype is not None and dtype != model.dtype:
        logger.warning("the server runs %s in %s; --dtype %s does not change that", name, model.dtype, dtype)
    logger.debug("opened %s: %d blocks at %s, %s on %s", name, model.n_layers, path, model.dtype, device)
    return model


def skeleton(name: str) -> Any:
    """transformers' module of a model by its configuration alone, without weights.

    Raises:
        UserError: It can't be had.
    """
    source = str(embedded_folder(name)) if name in ALIASES else name
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except Exception as error:  # whatever transformers makes of it
        raise UserError(_cannot_open(name, error)) from error


def _places(
    backend: Backend, device: str | None, device_map: str | Mapping[str, Any] | None, quantize: str
) -> tuple[str, Any]:
    """The device that a model's input goes to, and the device map, None without one.

    Raises:
        UserError: They contradict one another, or name what is not there.
    """
    if backend.vllm is not None:
        check_versions()
        if device_map is not None or quantize != UNQUANTISED:
            raise UserError(
                "--device-map and --quantize are for --engine transformers; vLLM shares tensors with --tensor-parallel"
            )
    if quantize not in (UNQUANTISED, *QUANTISED):
        raise UserError(f"quantize {quantize!r} is none of {', '.join((UNQUANTISED, *QUANTISED))}")
    if device is not None and device_map is not None:
        raise UserError("--device puts all weights in one place and --device-map in several: pass one of them")
    if backend.is_remote:
        return "cpu", None
    places = None if device_map is None else read_map(device_map)
    for named in reversed(devices_named(places) if places is not None else []):
        device = _checked_device(named, "device map")
    return _checked_device(device), places


def _with_weights(name: str, source: str, options: Mapping[str, Any]) -> Any:
    """The nnsight model, its weights all out of the checkpoint."""
    with every_weight(name):
        wrapped = TransformersModel(source, **options)
    check_entrance(wrapped._module, name)
    if away := offloaded_parts(wrapped._module):
        logger.warning("%s: %d of its weights are brought in for each pass, from disk or memory", name, away)
    return wrapped


def _held_dtype(backend: Backend, source: str, network: Any, layers: Any) -> str:
    """The type that the weights are held in, wherever they are."""
    if backend.engine is not None:
        return backend.engine.record["dtype"]
    if backend.is_remote:
        return _far_dtype(backend, source, network, layers)
    return str(next(network._module.parameters()).dtype)


def _say_what_is_loaded(name: str, source: str, device: str) -> None:
    """A line before what takes a while."""
    cached = None if Path(source).is_dir() else try_to_load_from_cache(source, "config.json")
    folder = Path(source) if Path(source).is_dir() else Path(cached).parent if isinstance(cached, str) else None
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors")) if folder else 0
    if folder is None or size >= LARGE:
        logger.warning("loading %s%s onto %s", name, f", {size / 1e9:.0f} GB of weights," if size else "", device)


def is_here(name: str) -> bool:
    """Whether a model is on this machine: an embedded one, a folder, or one that the hub's client has."""
    return name in ALIASES or (Path(name) / "config.json").exists() or _is_cached(name)


def _is_cached(name: str) -> bool:
    """Whether the hub's client has this model already."""
    try:
        return isinstance(try_to_load_from_cache(name, "config.json"), str)
    except ValueError:  # no name of the hub's; opening it says so
        return True


def _backend(remote: bool | str) -> Backend:
    if remote is False:
        return LOCAL
    if remote == "local":
        return open_backend("simulate")
    return open_backend("remote", None if remote is True else str(remote))


def _far_dtype(backend: Backend, source: str, network: Any, layers: Any) -> str:
    """The type a server holds the weights in; it is asked to load them if it has not."""
    running = {one.name: one for one in deployments(backend.address) if one.state == RUNNING}
    known = running.get(source)
    if known is not None and known.dtype:
        return known.dtype
    told = stream_dtype(network, backend.nnsight(network), layers[0])
    if told not in FLOATS:
        raise UserError("the server says of no type that it holds the weights in; is it an NDIF server? check --host")
    return told


def _checked_device(device: str | None, what: str = "device") -> str:
    if device is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):
        option = f"--{what.replace(' ', '-')} "
        known = (f" or {option}".join(devices())) + (f", or one of {', '.join(WORDS)}" if what != "device" else "")
        raise UserError(f"{what} {device!r} is not there: pass {option}{known}{_why_no_gpu()}") from None
    return device


def chosen_device(device: str | None) -> str:
    """The device that is taken where this one is asked for, or none.

    Raises:
        UserError: It is not there.
    """
    return _checked_device(device)


def type_of(dtype: str | None, device: str, config: Any) -> torch.dtype:
    """The type that a model's weights are loaded in."""
    told = _checked_dtype(dtype, device)
    return (getattr(config, "dtype", None) or torch.float32) if told == "auto" else told


def devices() -> list[str]:
    """torch's names of the devices that are there, the one that is taken by itself first."""
    cards = [f"cuda:{at}" for at in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    return [*(["cuda"] if len(cards) == 1 else cards), *(["mps"] if torch.backends.mps.is_available() else []), "cpu"]


def _why_no_gpu() -> str:
    """What keeps a GPU from being used, if this torch could use none."""
    if torch.cuda.is_available():
        return ""
    if torch.version.cuda is None and torch.version.hip is None:
        return f" (torch {torch.__version__} is built for CPUs alone: install a build for your GPU's driver)"
    return f" (torch {torch.__version__} could use a GPU and finds none: does nvidia-smi list one?)"


def _checked_dtype(dtype: str | None, device: str) -> Any:
    if dtype is None:
        return torch.float32 if device == "cpu" else "auto"
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if dtype not in known:
        raise UserError(f"dtype {dtype!r} is none of {', '.join(known)}")
    return known[dtype]


def _cannot_open(name: str, error: Exception) -> str:
    if "trust_remote_code" in str(error):
        return f"model {name!r} needs code of its own, which this tool never runs; pass a model that transformers knows"
    if is_full(error):
        return no_room()
    if "dispatched on the CPU or the disk" in str(error):
        return (f"model {name!r}: quantised weights can't lie on disk, nor in memory beside a GPU, and the device map puts some "
                "there: leave out one of --quantize and --device-map")  # fmt: skip
    if "device_map" in str(error) or "device map" in str(error):
        return f"model {name!r}: the device map does not suit it ({_reason(error)})"
    if Path(name).is_dir():
        if packed := quantised(Path(name)):
            return (f"{name}: its weights are quantised ({packed}), which transformers can't open here ({_reason(error)}); "
                    "pass the model that it was made from")  # fmt: skip
        return f"{name}: not a model folder that transformers can read ({_reason(error)})"
    chain, cause = [], error
    while cause is not None and cause not in chain:
        chain.append(cause)
        cause = cause.__cause__ or cause.__context__
    kinds = {type(link).__name__ for link in chain}
    if "GatedRepoError" in kinds:
        return f"model {name!r} is gated: accept its licence on its hub page, then `hf auth login`"
    if kinds & {"RepositoryNotFoundError", "HFValidationError", "HfHubValidationError"}:
        return f"no model {name!r}: neither a folder here, nor an alias ({', '.join(ALIASES)}), nor on the hub"
    if kinds & {"LocalEntryNotFoundError", "OfflineModeIsEnabled", "ConnectionError", "ConnectError"}:
        return (
            f"model {name!r} is not on this machine and the hub can't be reached; "
            f"check the name and the network, or use --model {DEFAULT_MODEL}"
        )
    return f"model {name!r} can't be opened: {_reason(error)}"


def _reason(error: Exception) -> str:
    """What was raised; its last line where that is what a pipeline says of each class it tried."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:300] if lines and "with any of the following classes" in lines[0] else cause_of(error)
