"""A gate on disk: what it reads, its weights and threshold; and what every gate can do."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import torch

from data.contract import POSITIONS
from data.errors import UserError
from data.store.tensors import check_shapes, load_tensors, save_tensors
from interventions.gates.words import counted
from interventions.model.control_tokens import control_tokens
from interventions.model.fits import check_model
from interventions.model.model import Model
from interventions.traced.gating import Gate, Network, join, scored

FORMAT, PROBE_FORMAT = "refusal-steering/gate/1", "refusal-steering/probe/1"
SOURCES = ("reads", "words", "tokens")
FORMS = ("linear", "cosine", "cast", "network")
PARTS = ("weight", "mean", "bias")
NOTHING = torch.zeros(0)


class AnyGate(Protocol):
    """What arms ask of a gate."""

    def check(self, model: Model, /) -> None:
        """Does it belong to this model? A UserError if not."""
        ...

    def shipped(self, model: Model, prompts: Sequence[Mapping[str, Any]], /) -> Gate:
        """It as a trace needs it; of prompts only a gate over words reads the text, and only `perfect` the label."""
        ...

    @property
    def parts(self) -> Sequence[torch.Tensor]:
        """All that its decisions rest on."""
        ...

    @property
    def threshold(self) -> torch.Tensor:
        """(1,): the score from which on a prompt looks harmful."""
        ...


@dataclass(frozen=True)
class FittedGate:
    """A gate that was fitted: score = sigmoid(gain · f(x) + bias), harmful from `threshold` on.

    f is (x − mean)·weight, the same when the threshold is chosen and when it gates (the published code forgets the mean
    in use), unless `form` says otherwise (`traced.gating.Gate`).

    Attributes:
        weight: (x,) float32; of a network (hidden, x).
        mean: (x,) float32.
        bias: (1,) float32.
        threshold: (1,) float32.
        metadata: kind, model, revision, site, and what x is: `layer` and `position`; `reads` (JSON, [[layer, position], …]);
            `words` (JSON); or `tokens` (JSON, control tokens whose log-probabilities it is). Also `form` and `gain`. Of one
            that joins others: `joined`, one of the values of `data.contract.JOINS`.
        members: What it joins, by their names.
        network: What follows the weight, of a network.
    """

    weight: torch.Tensor
    mean: torch.Tensor
    bias: torch.Tensor
    threshold: torch.Tensor
    metadata: dict[str, str] = field(default_factory=dict)
    members: "dict[str, FittedGate]" = field(default_factory=dict)
    network: Network | None = None

    @property
    def reads(self) -> tuple[tuple[int, str], ...]:
        """Where x stands in the residual stream; of one that joins others all that these read."""
        if self.members:
            return tuple(dict.fromkeys(read for member in self.members.values() for read in member.reads))
        if "layer" in self.metadata:
            return ((int(self.metadata["layer"]), self.metadata["position"]),)
        return tuple((int(layer), str(position)) for layer, position in json.loads(self.metadata.get("reads", "[]")))

    @property
    def layer(self) -> int:
        """The block whose output a probe reads."""
        return self.reads[0][0]

    @property
    def form(self) -> str:
        """A key of `traced.gating.Gate.form`."""
        return self.metadata.get("form", "linear")

    @property
    def gate(self) -> Gate:
        """It as a trace needs it, but for what only a model or prompts can say."""
        return Gate(self.reads, self.weight, self.mean, self.bias, self.threshold, form=self.form,
                    gain=float(self.metadata.get("gain", 1)), network=self.network)  # fmt: skip

    @property
    def parts(self) -> Sequence[torch.Tensor]:
        """All that its decisions rest on."""
        own = torch.tensor([float(self.metadata.get("gain", 1))])
        inner = [part for member in self.members.values() for part in member.parts]
        gained = [own] if "gain" in self.metadata else []
        return self.weight, self.mean, self.bias, self.threshold, *(self.network or ()), *gained, *inner

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        """What was fitted, by its name in a file; the threshold and members aside."""
        return {name: getattr(self, name) for name in PARTS} | (self.network._asdict() if self.network else {})

    def score(self, x: torch.Tensor) -> torch.Tensor:
        """How harmful each row looks: (rows, x) of any float type and device -> (rows,) float32, 0 to 1."""
        return scored(x.float(), self.gate)

    def joined(self, scores: Sequence[torch.Tensor]) -> torch.Tensor:
        """Its members' scores as its own."""
        return join(scores, self.metadata["joined"])

    def check(self, model: Model) -> None:
        """Does it belong to this model?

        Raises:
            UserError: It was fitted on another model, width or site, or reads control tokens that the model lacks.
        """
        for member in self.members.values():
            member.check(model)
        if self.reads and not self.members:
            width, layers = self.weight.shape[-1] // len(self.reads), [layer for layer, _ in self.reads]
            kind = self.metadata.get("kind")
            what = "the probe's activations" if kind is None else f"the gate's ({kind}) activations"
            check_model(what, self.metadata, width, layers, model)
            odd = [position for _, position in self.reads if position not in POSITIONS or position == "suffix"]
            if odd:
                raise UserError(
                    f"{what} were read at position {odd[0]!r}, which no prompt has; run extract without --suffix"
                )
        missing = [name for name in self._tokens if name not in control_tokens(model.tokenizer)]
        if missing:
            raise UserError(f"the gate reads the control token {missing[0]!r}, and model {model.name!r} has none such")

    def shipped(self, model: Model, prompts: Sequence[Mapping[str, Any]]) -> Gate:
        """It as a trace needs it; a gate over words has read the prompts."""
        if self.members:
            members = tuple(member.shipped(model, prompts) for member in self.members.values())
            return self.gate._replace(members=members, joined=self.metadata["joined"])
        if "words" in self.metadata:
            x = torch.from_numpy(counted([row["prompt"] for row in prompts], self.vocabulary))
            return self.gate._replace(given=self.score(x))
        ids = control_tokens(model.tokenizer)
        return self.gate._replace(tokens=tuple(ids[name] for name in self._tokens))

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Those that its tensors have to have, by the weight's."""
        width = tuple(self.weight.shape[-1:])
        if self.network is None:
            return {"weight": width, "mean": width, "bias": (1,)}
        hidden, classes = tuple(self.weight.shape[:1]), tuple(self.network.classes.shape[:1])
        return {
            "weight": hidden + width,
            "mean": width,
            "bias": (1,),
            "inner": hidden,
            "outer": classes + hidden,
            "classes": classes,
        }

    def calibrated(self, slope: float, offset: float) -> "FittedGate":
        """The same with log-odds slope · log-odds + offset."""
        gain = float(self.metadata.get("gain", 1)) * slope
        return replace(self, bias=self.bias * slope + offset, metadata=self.metadata | {"gain": repr(gain)})

    @property
    def vocabulary(self) -> list[str]:
        """Words that it reads."""
        return json.loads(self.metadata.get("words", "[]"))

    @property
    def _tokens(self) -> list[str]:
        return json.loads(self.metadata.get("tokens", "[]"))

    def save(self, path: Path) -> None:
        """Write safetensors; a member's tensors are called `NAME.weight` and so on."""
        tensors = {"threshold": self.threshold}
        for name, one in self.members.items() or {"": self}.items():
            tensors |= {f"{name}.{part}".lstrip("."): tensor for part, tensor in one.tensors.items()}
        inner = {name: member.metadata for name, member in self.members.items()}
        more = {"members": json.dumps(inner, ensure_ascii=False)} if inner else {}
        save_tensors(path, tensors, {"format": FORMAT, **self.metadata, **more})

    @classmethod
    def load(cls, path: Path) -> "FittedGate":
        """Read safetensors, a probe's or another gate's.

        Raises:
            UserError: The file is missing or no gate.
        """
        tensors, metadata = load_tensors(path, "gate", (FORMAT, PROBE_FORMAT), ("model", "site"))
        try:
            members = json.loads(metadata.pop("members", "{}"))
            parts = {name: cls._of(path, tensors, name, own) for name, own in members.items()}
            whole = cls._of(path, tensors, "", metadata) if not members else cls(
                NOTHING, NOTHING, torch.zeros(1), tensors["threshold"], metadata, parts)  # fmt: skip
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, ZeroDivisionError):
            raise UserError(
                f"{path}: its metadata is damaged: it does not say what its weights are of; run probe again"
            ) from None
        wanted: dict[str, tuple[int, ...]] = {"threshold": (1,)}
        for name, one in parts.items() or {"": whole}.items():
            wanted |= {f"{name}.{part}".lstrip("."): shape for part, shape in one.shapes.items()}
        check_shapes(path, tensors, wanted)
        return whole

    @classmethod
    def _of(cls, path: Path, tensors: Mapping[str, torch.Tensor], name: str, metadata: dict[str, str]) -> "FittedGate":
        """One gate of a file, if its metadata says what its weights are of."""
        named = PARTS + (Network._fields if metadata.get("form") == "network" else ())
        own = {part: tensors.get(f"{name}.{part}".lstrip(".")) for part in named}
        if any(part is None for part in own.values()):
            check_shapes(path, tensors, dict.fromkeys((*named, "threshold"), ()))
        threshold = torch.tensor([0.5]) if name else tensors["threshold"]  # members' scores count, not what they decide
        inner = {part: own.pop(part) for part in named if part not in PARTS}
        gate = cls(**own, threshold=threshold, metadata=metadata, network=Network(**inner) if inner else None)  # type: ignore[arg-type]
        if metadata.get("format") == PROBE_FORMAT or "layer" in metadata:
            sizes = {"reads": 1} if metadata["layer"].isdecimal() and metadata["position"] else {}
        else:
            sizes = {source: len(json.loads(metadata[source])) for source in SOURCES if source in metadata}
        [(source, size)] = sizes.items()
        width = gate.weight.shape[-1]
        if (width % size if source == "reads" else width - size) or gate.form not in FORMS or not size:
            raise ValueError(source)
        if gate.network is not None and (gate.weight.dim() != 2 or len(gate.network.classes) < 2):
            raise ValueError("network")
        float(metadata.get("gain", 1))
        assert gate.reads is not None  # they can be read
        return gate


class PerfectGate:
    """The row's own label: an upper bound, not a method."""

    parts: Sequence[torch.Tensor] = ()
    threshold = torch.tensor([0.5])

    def check(self, _model: Model) -> None:
        """It belongs to every model."""

    def shipped(self, _model: Model, prompts: Sequence[Mapping[str, Any]]) -> Gate:
        """1 for harmful rows, 0 for others."""
        labels = torch.tensor([float(row["label"] == "harmful") for row in prompts])
        return Gate((), NOTHING, NOTHING, torch.zeros(1), self.threshold, given=labels)
