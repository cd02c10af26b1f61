"""Low-rank combination of category vectors: the basis it starts from, and what it adds to the residual stream.

Training it needs gradients through the model and is not done here.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
import torch

from data import for_split
from data.errors import UserError
from data.store.activations import Activations
from data.store.tensors import check_shapes, load_tensors, save_tensors
from interventions.fitting.covariance import shrunk_covariance
from interventions.methods.vectors import SteeringVectors
from interventions.model.fits import check_model
from interventions.traced.edits import LowRankEdit

if TYPE_CHECKING:
    from interventions.model.model import Model

FORMAT = "refusal-steering/lowrank/1"
MODES = {
    "fixed": "the same vector for every row, U z",
    "input": "U Vᵀ(h − mean): what of a row's difference from the mean benign row lies in the categories' span",
}
PUBLISHED_EPS = 1e-4
START = 0.01


@dataclass(frozen=True)
class LowRank:
    """A rank-r edit of the residual stream at one layer.

    The published vector is U(Vᵀz) with z in d_model dimensions (arXiv 2603.13359); only Vᵀz enters it, so that `z`
    here is that product, r numbers.

    Attributes:
        U: (d_model, rank) float32; directions that are added.
        V: (d_model, rank) float32; directions that are read.
        z: (rank,) float32; how much of each direction, mode `fixed`.
        mean: (d_model,) float32; mean residual of benign rows.
        metadata: model, revision, layer, site, position, mode, …, every value a string.
    """

    U: torch.Tensor
    V: torch.Tensor
    z: torch.Tensor
    mean: torch.Tensor
    metadata: dict[str, str] = field(default_factory=dict)

    @property
    def layer(self) -> int:
        """The block whose output is edited."""
        return int(self.metadata["layer"])

    @property
    def edit(self) -> LowRankEdit:
        """It as a trace needs it."""
        return LowRankEdit(self.U, self.V, self.z, self.mean, self.metadata["mode"])

    def check(self, model: "Model") -> None:
        """Does it belong to this model?

        Raises:
            UserError: It was computed on another model, width or site.
        """
        check_model("the low-rank map's activations", self.metadata, len(self.mean), [self.layer], model)

    def save(self, path: Path) -> None:
        """Write safetensors."""
        save_tensors(path, {"U": self.U, "V": self.V, "z": self.z, "mean": self.mean}, self.metadata)

    @classmethod
    def load(cls, path: Path) -> "LowRank":
        """Read safetensors.

        Raises:
            UserError: The file is missing or no low-rank map.
        """
        tensors, metadata = load_tensors(path, "low-rank", FORMAT, ("model", "layer", "site", "mode"))
        shape = tuple(tensors["U"].shape) if "U" in tensors else ()
        width, rank = shape if len(shape) == 2 else (0, 0)
        wanted = {"U": (width, rank), "V": (width, rank), "z": (rank,), "mean": (width,)}
        check_shapes(path, tensors, wanted)
        if metadata["mode"] not in MODES or not metadata["layer"].isdecimal():
            raise UserError(f"{path}: its metadata is damaged")
        return cls(**tensors, metadata=metadata)


def start_lowrank(
    path: Path,
    vectors: SteeringVectors,
    layer: int,
    *,
    mode: str = "fixed",
    published: bool = False,
    split: str = "train",
    seed: int = 0,
) -> LowRank:
    """An untrained low-rank map: the basis of the category vectors, and z = 0.01 · standard normal.

    Args:
        path: A `prompts` file of `extract`; its benign rows give the covariance and the mean.
        vectors: One direction a category.
        layer: The block to edit.
        mode: A key of `MODES`.
        published: Take `published_basis` instead of `basis`.
        split: Rows of this split, and those without any, are used.
        seed: Of z.

    Raises:
        UserError: Fewer than two benign rows, no such layer or mode, other models, or vectors that span too little.
    """
    if mode not in MODES:
        raise UserError(f"unknown mode {mode!r}; there are {', '.join(MODES)}")
    activations = Activations.open(path)
    if activations.metadata["model"] != vectors.metadata["model"]:
        raise UserError(f"the vectors are those of {vectors.metadata['model']!r}, the activations of "
                        f"{activations.metadata['model']!r}")  # fmt: skip
    rows = for_split(activations.rows.with_row_index("row"), split).filter(pl.col("label") == "benign")["row"]
    if len(rows) < 2:
        raise UserError(f"{len(rows)} benign rows in split {split!r}: `extract --benign NAME_OR_FILE` adds some")
    benign = activations.layer(layer, rows.to_numpy()).astype(np.float64)
    stacked = np.stack([vectors.at(layer, name).double().numpy() for name in vectors.categories], axis=1)
    if np.linalg.matrix_rank(stacked) < stacked.shape[1]:
        raise UserError(f"the vectors at layer {layer} are zero or depend on one another; use other --tau or --top-k")
    up, down = published_basis(stacked, benign) if published else basis(stacked, benign)
    z = START * np.random.default_rng(seed).standard_normal(stacked.shape[1])
    metadata = {
        "format": FORMAT,
        **{key: activations.metadata[key] for key in ("model", "revision", "site", "position")},
        **{"layer": str(layer), "mode": mode, "basis": "published" if published else "shrunk", "seed": str(seed)},
        "categories": json.dumps(vectors.categories, ensure_ascii=False),
        **{"split": split, "benign": str(len(rows))},
    }
    parts = [torch.from_numpy(np.asarray(part, np.float32)) for part in (up, down, z, benign.mean(0))]
    return LowRank(parts[0], parts[1], parts[2], parts[3], metadata)


def basis(vectors: np.ndarray, benign: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Directions to add and to read, whitened with a shrunk covariance and mapped back to the residual stream.

    With Q of the QR decomposition of Σ^(−1/2)·vectors, Σ by Ledoit–Wolf: U = Σ^(1/2) Q, V = Σ^(−1/2) Q. Columns of U
    span the category vectors and have length 1 in the metric Σ⁻¹; VᵀU = I, so that U Vᵀ projects on that span; the
    coordinates Vᵀ(h − mean) are uncorrelated over benign rows, with variance 1.

    Args:
        vectors: (d_model, categories).
        benign: (rows, d_model).
    """
    values, axes = np.linalg.eigh(shrunk_covariance(benign))
    root = np.sqrt(np.maximum(values, values[-1] * np.finfo(float).eps))
    q = _orthonormal(axes @ ((axes.T @ vectors) / root[:, None]))
    return axes @ (root[:, None] * (axes.T @ q)), axes @ ((axes.T @ q) / root[:, None])


def published_basis(vectors: np.ndarray, benign: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The published start, U = V = Q of Σ^(−1/2)·vectors, with Σ the sample covariance + 1e-4 · I.

    Kept to reproduce arXiv 2603.13359, flaws included: with fewer rows than dimensions Σ^(−1/2) is 1/√(1e-4) = 100
    wherever no row varied, so that the whitened vectors are mostly what was never observed; and Q, which lives in
    whitened coordinates, is added to the raw residual stream without mapping it back. (SmolLM2, layer 17: the
    category vectors have cosines of 0.10 to 0.12 with the span of Q, and lie wholly in that of `basis`.)

    Args:
        vectors: (d_model, categories).
        benign: (rows, d_model).
    """
    centred = benign - benign.mean(0)
    values, axes = np.linalg.eigh(centred.T @ centred / len(benign) + PUBLISHED_EPS * np.eye(benign.shape[1]))
    root = np.sqrt(np.maximum(values, PUBLISHED_EPS))
    q = _orthonormal(axes @ ((axes.T @ vectors) / root[:, None]))
    return q, q


def _orthonormal(vectors: np.ndarray) -> np.ndarray:
    """Q of a QR decomposition whose R has a positive diagonal: each column leans towards its own vector."""
    q, r = np.linalg.qr(vectors)
    return q * np.where(np.diag(r) < 0, -1, 1)
