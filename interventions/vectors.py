"""Steering vectors: computing them from activations, looking at them, saving and loading them."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import polars as pl
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from data import for_split
from data.errors import UserError
from interventions.extraction import SITE, open_activations, slices
from interventions.models import Model
from interventions.rundir import replacing

FORMAT = "refusal-steering/1"
METHODS = ("mean",)
UNITS = ("raw", "unit", "residual")
MEAN = "mean"


@dataclass(frozen=True)
class SteeringVectors:
    """One direction in the residual stream a category and layer.

    Attributes:
        tensors: Category -> float32 (layers, d_model), in the order of `layers`.
        metadata: What the contract asks for, every value a string.
    """

    tensors: dict[str, torch.Tensor]
    metadata: dict[str, str] = field(default_factory=dict)

    @property
    def layers(self) -> list[int]:
        """Block numbers of the rows of each tensor."""
        return json.loads(self.metadata["layers"])

    @property
    def categories(self) -> list[str]:
        """Names, in the order in which they were computed."""
        return list(json.loads(self.metadata["counts"]))

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return next(iter(self.tensors.values())).shape[-1]

    def at(self, layer: int, category: str = MEAN) -> torch.Tensor:
        """The vector of a category at a layer, (d_model,) float32; `mean` is the mean of all categories'.

        Raises:
            UserError: No such layer or category.
        """
        if layer not in self.layers:
            raise UserError(f"no vectors at layer {layer}; they are at {_ranges(self.layers)}")
        index = self.layers.index(layer)
        if category in self.tensors:
            return self.tensors[category][index]
        if category == MEAN:
            return torch.stack([tensor[index].double() for tensor in self.tensors.values()]).mean(0).float()
        raise UserError(f"no vector for category {category!r}; there are {', '.join(map(repr, self.tensors))}")

    def delta(self, layer: int, category: str, strength: float, unit: str) -> torch.Tensor:
        """What is added to the residual stream, (d_model,) float32.

        `raw`: strength · v; `unit`: strength · v/‖v‖; `residual`: strength · v/‖v‖ · the mean residual norm at
        that layer and the extraction position.

        Raises:
            UserError: The vector is zero and a unit vector was asked for.
        """
        vector = self.at(layer, category)
        if unit == "raw":
            return strength * vector
        norm = float(vector.double().norm())
        if norm == 0:
            raise UserError(f"the vector of {category!r} at layer {layer} is zero; it has no direction")
        scale = json.loads(self.metadata["residual_norms"])[self.layers.index(layer)] if unit == "residual" else 1.0
        return strength * scale / norm * vector

    def table(self, layer: int) -> pl.DataFrame:
        """Norm, rows behind it and cosine with every other category, one row a category."""
        counts = json.loads(self.metadata["counts"])
        matrix = np.stack([self.at(layer, name).double().numpy() for name in self.categories])
        norms = np.linalg.norm(matrix, axis=1)
        unit = matrix / np.where(norms == 0, 1, norms)[:, None]
        cosines = unit @ unit.T
        columns = {"category": self.categories, "rows": [counts[name] for name in self.categories], "norm": norms}
        columns |= {f"cos {name}": cosines[:, at] for at, name in enumerate(self.categories)}
        return pl.DataFrame(columns)

    def check(self, model: Model) -> None:
        """Do these vectors belong to this model?

        Raises:
            UserError: Another model, width, site, or layers that the model does not have.
        """
        if self.metadata.get("site") != SITE:
            raise UserError(f"the vectors were read at {self.metadata.get('site')!r}; this tool steers {SITE}")
        if self.d_model != model.d_model:
            raise UserError(f"the vectors are {self.d_model} wide, model {model.name!r} is {model.d_model}")
        if self.metadata.get("model") != model.name:
            raise UserError(f"the vectors are those of {self.metadata.get('model')!r}, not of {model.name!r}")
        if max(self.layers) >= model.n_layers:
            raise UserError(
                f"the vectors go to layer {max(self.layers)}, model {model.name!r} ends at {model.n_layers - 1}"
            )

    def save(self, path: Path) -> None:
        """Write safetensors."""
        with replacing(path) as unfinished:
            save_file({name: tensor.contiguous() for name, tensor in self.tensors.items()}, unfinished, self.metadata)

    @classmethod
    def load(cls, path: Path) -> "SteeringVectors":
        """Read safetensors.

        Raises:
            UserError: The file is missing, is no such file, or lacks what the format asks for.
        """
        try:
            with safe_open(path, "pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no mapping
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path}: not a readable vectors file ({error})") from None
        needed = ("format", "model", "layers", "site", "counts", "residual_norms")
        missing = [name for name in needed if name not in metadata]
        if missing or metadata["format"] != FORMAT or not tensors:
            raise UserError(f"{path}: not a vectors file of this tool (lacks {', '.join(missing) or FORMAT})")
        try:
            depth, names = len(json.loads(metadata["layers"])), list(json.loads(metadata["counts"]))
        except (ValueError, TypeError):
            raise UserError(f"{path}: its metadata is damaged") from None
        shapes = {tuple(tensor.shape) for tensor in tensors.values()}
        if len(shapes) != 1 or len(next(iter(shapes))) != 2 or next(iter(shapes))[0] != depth:
            raise UserError(f"{path}: tensors of {sorted(shapes)}, where its metadata names {depth} layers")
        if set(names) != set(tensors):
            raise UserError(f"{path}: its metadata names other categories than its tensors")
        return cls({name: tensors[name].float() for name in names}, metadata)


def difference_in_means(
    activations: Path,
    *,
    split: str = "train",
    tau: float | None = None,
    top_k: int | None = None,
    normalize: bool = False,
) -> SteeringVectors:
    """v_c = mean(category c and harmful) − mean(benign, any category), at every layer, summed in float64.

    *What Do Refusal Tokens Learn?*, section on difference in means; `tau` and `top_k` are the thresholds of its
    published code (τ = 1e-3, K = 200).

    Args:
        activations: A file of `extract`; rows of `split`, or without any split, are used.
        split: Which rows to fit on.
        tau: Entries of smaller magnitude become 0.
        top_k: Only the K entries of largest magnitude are kept.
        normalize: Scale to unit length.

    Raises:
        UserError: No benign row, or no harmful row with a category.
    """
    metadata, rows = open_activations(activations)
    rows = rows.with_row_index("row")
    fit = for_split(rows, split)
    benign = fit.filter(pl.col("label") == "benign")
    harmful = fit.filter((pl.col("label") == "harmful") & pl.col("category").is_not_null())
    if benign.is_empty():
        raise UserError(f"no benign row in split {split!r}: --benign NAME_OR_FILE adds some (for instance embedded)")
    if harmful.is_empty():
        raise UserError(f"no harmful row with a category in split {split!r}: add a column 'category' to the prompts")
    names = sorted(harmful["category"].unique())
    group = np.full(rows.height, -1)
    group[benign["row"].to_numpy()] = len(names)
    for index, name in enumerate(names):
        group[harmful.filter(pl.col("category") == name)["row"].to_numpy()] = index
    sums, counts, norms = _sums(activations, group, len(names) + 1)
    means = sums / counts[:, None, None]
    vectors = means[:-1] - means[-1]
    if tau is not None:
        vectors[np.abs(vectors) < tau] = 0
    if top_k is not None and top_k < vectors.shape[-1]:
        floor = -np.partition(-np.abs(vectors), top_k - 1, axis=-1)[..., top_k - 1 : top_k]
        vectors[np.abs(vectors) < floor] = 0
    if normalize:
        length = np.linalg.norm(vectors, axis=-1, keepdims=True)
        vectors = vectors / np.where(length == 0, 1, length)
    return SteeringVectors(
        {name: torch.from_numpy(vectors[index]).float() for index, name in enumerate(names)},
        {
            "format": FORMAT,
            **{key: metadata[key] for key in ("model", "revision", "layers", "site", "position")},
            "method": "mean",
            "counts": json.dumps({name: int(counts[index]) for index, name in enumerate(names)}, ensure_ascii=False),
            "benign": str(int(counts[-1])),
            "residual_norms": json.dumps([float(norm) for norm in norms]),
            "data": ", ".join(sorted(rows["dataset"].unique())),
            "split": split,
        },
    )


def _sums(path: Path, group: np.ndarray, groups: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Float64 sums (groups, layers, d_model), rows a group, and the mean norm (layers,) over all grouped rows."""
    total: np.ndarray | None = None
    norms, used = 0.0, 0
    counts = np.array([(group == index).sum() for index in range(groups)], dtype=np.float64)
    for start, block in slices(path):
        values = block.numpy().astype(np.float64)
        if total is None:
            total = np.zeros((groups, *values.shape[1:]))
        here = group[start : start + len(values)]
        for index in np.unique(here[here >= 0]):
            total[index] += values[here == index].sum(0)
        norms = norms + np.linalg.norm(values[here >= 0], axis=-1).sum(0)
        used += int((here >= 0).sum())
    assert total is not None
    return total, counts, np.asarray(norms) / max(used, 1)


def _ranges(layers: list[int]) -> str:
    whole = layers == list(range(layers[0], layers[-1] + 1))
    return f"{layers[0]} to {layers[-1]}" if whole and len(layers) > 2 else ", ".join(map(str, layers))
