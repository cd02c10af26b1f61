"""A model as a notebook uses it: activations, steered answers and comparisons, a line each, with nothing written to disk."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Any, ParamSpec, overload

import polars as pl
import torch

from data.contract import DEFAULT_SCOPE, MAX_NEW_TOKENS, SCOPES
from data.errors import UserError
from interventions.methods.direction import Direction
from interventions.methods.vectors import SteeringVectors
from interventions.model.model import Model
from interventions.model.opening import open_model as open_plain
from interventions.model.prompt_format import encode
from interventions.reading.batches import plan_batches
from interventions.reading.budget import DECODED, Budget, default_batch_tokens
from interventions.reading.extract import checked_layers
from interventions.reading.residual import Source
from interventions.steering.arms import Arm, baseline
from interventions.steering.batches import answer_rows, plan_answers
from interventions.steering.plans import Plan, Tools, plan_arm
from interventions.steering.texts import finished, finite

Given = ParamSpec("Given")
UNSTEERED = "unsteered"
COMPARED: dict[str, Any] = {
    "prompt": pl.String,
    "steering": pl.String,
    "response": pl.String,
    "control_token": pl.String,
    "refusal_probability": pl.Float64,
    "kl": pl.Float64,
    "new_tokens": pl.Int64,
    "finish": pl.String,
}


@dataclass(frozen=True)
class Activations:
    """The residual stream of some prompts, and what its rows are.

    Attributes:
        tensor: float32 (prompts, layers, d_model).
        layers: The blocks whose outputs were read, ascending.
        table: One row a prompt: `prompt`, `n_tokens`.
    """

    tensor: torch.Tensor
    layers: list[int]
    table: pl.DataFrame

    def project(self, *directions: Direction) -> pl.DataFrame:
        """Projections on unit vectors: one row a prompt, direction and layer; `prompt`, `direction`, `layer`, `projection`.

        Raises:
            UserError: A direction has no vector at a layer that was read, or is zero there.
        """
        parts: list[pl.DataFrame] = []
        for direction in directions:
            for at, layer in enumerate(self.layers):
                vector = direction.at(layer)
                if not vector.any():
                    raise UserError(f"{direction.name} is zero at layer {layer}; there is nothing to project on")
                values = self.tensor[:, at].double() @ (vector / vector.norm()).double()
                parts.append(
                    self.table.select("prompt").with_columns(
                        pl.lit(direction.name).alias("direction"),
                        pl.lit(layer, dtype=pl.Int64).alias("layer"),
                        pl.Series("projection", values.tolist(), pl.Float64),
                    )
                )
        return pl.concat(parts)


class InteractiveModel(Model):
    """An open model that reads and answers prompts in a line each."""

    def activations(
        self, prompts: str | Sequence[str], layers: Sequence[int] | None = None, position: str = "last"
    ) -> Activations:
        """The residual stream of prompts at some layers.

        Args:
            prompts: One or several; a chat template is put around each.
            layers: Block numbers, default all.
            position: `last` token of the rendered prompt, `mean` over the user's tokens, or the last of these, `instruction`.

        Returns:
            float32 (prompts, layers, d_model) and a table of the prompts.

        Raises:
            UserError: A layer that the model does not have, or no such position.
        """
        texts, read = _texts(prompts), checked_layers(self, layers)
        if position not in ("last", "mean", "instruction"):
            raise UserError(f"position {position!r} is none of last, mean, instruction")
        source = Source.of(self, texts, (), position)
        tokens = default_batch_tokens(self)
        plan = plan_batches(source.computed(self), tokens)
        smallest = min(source.computed(self))
        found = Budget(tokens).spend(lambda most: source.read(self, plan, read, most), smallest, self.backend.is_remote)
        back = torch.tensor([row for rows in plan for row in rows]).argsort()
        table = pl.DataFrame({"prompt": texts, "n_tokens": source.row_lengths})
        return Activations(torch.cat(found)[back], read, table)

    @overload
    def answer(  # pyright: ignore[reportOverlappingOverload]  # a text is a sequence of texts too
        self, prompts: str, steering: Direction | None = None, **options: Any
    ) -> str: ...
    @overload
    def answer(self, prompts: Sequence[str], steering: Direction | None = None, **options: Any) -> list[str]: ...
    def answer(
        self, prompts: str | Sequence[str], steering: Direction | None = None, **options: Any
    ) -> str | list[str]:
        """Greedy answers, steered by a direction or, without one, not at all.

        Args:
            prompts: One or several; a chat template is put around each.
            steering: What is added to the residual stream.
            options: `layer`, `scope` and `max_new_tokens`, as `compare` takes them.

        Returns:
            The answer's text without its control token; a list of them for several prompts.

        Raises:
            UserError: The direction is another model's, or has no vector at the layer.
        """
        given: dict[str, Direction | None] = {"answer": steering}
        rows = self._compared(_texts(prompts), given, **options)
        texts = [row["response"] for row in rows]
        return texts[0] if isinstance(prompts, str) else texts

    def compare(
        self, prompts: str | Sequence[str], steerings: Mapping[str, Direction] | Direction, **options: Any
    ) -> pl.DataFrame:
        """Answers of the unsteered model and of each steering, side by side.

        Args:
            prompts: One or several; a chat template is put around each.
            steerings: Names and directions; or one direction.
            options: `layer`: the block behind which it is added, default round(18/32 · n_layers) or the nearest that the
                direction has. `scope`: at which positions, `prompt-last`, `prompt`, `generated` (default) or `all`.
                `max_new_tokens`: at most so many, default 32.

        Returns:
            One row a prompt and steering, `unsteered` first: `prompt`, `steering`, `response`, `control_token`,
            `refusal_probability` (of all refusal tokens, at the first generated position; missing where the model has none),
            `kl` (unsteered ‖ steered there, nats), `new_tokens`, `finish` (`stop` or `length`).

        Raises:
            UserError: As `answer`.
        """
        named = {steerings.name: steerings} if isinstance(steerings, Direction) else dict(steerings)
        if UNSTEERED in named:
            raise UserError(f"{UNSTEERED!r} is always there: call a direction something else")
        every: dict[str, Direction | None] = {UNSTEERED: None, **named}
        return pl.DataFrame(self._compared(_texts(prompts), every, **options), schema=COMPARED)

    def _compared(
        self,
        texts: list[str],
        steerings: Mapping[str, Direction | None],
        *,
        layer: int | None = None,
        scope: str = DEFAULT_SCOPE,
        max_new_tokens: int = MAX_NEW_TOKENS,
    ) -> list[dict[str, Any]]:
        """One row a prompt and steering, prompt by prompt."""
        if scope not in SCOPES:
            raise UserError(f"scope {scope!r} is none of {', '.join(SCOPES)}")
        plans = [self._plan(name, one, len(texts), layer, scope) for name, one in steerings.items()]
        encoded = encode(self.tokenizer, texts, room=max_new_tokens)
        budget = Budget(DECODED * default_batch_tokens(self))
        found: list[dict[str, Any]] = [{} for _ in range(len(texts) * len(plans))]
        for rows in plan_answers(encoded, len(plans), max_new_tokens, budget):
            answers = answer_rows(self, encoded, rows, plans, [], max_new_tokens, budget, top_k=1)
            assert answers.kl is not None
            for at, row in enumerate(rows):
                for arm, name in enumerate(steerings):
                    told = finished(self, answers.tokens[at, arm].tolist(), max_new_tokens)
                    refusal = None if answers.refusal is None else finite(answers.refusal[at, arm])
                    found[row * len(plans) + arm] = {
                        "prompt": texts[row],
                        "steering": name,
                        "refusal_probability": refusal,
                        "kl": finite(answers.kl[at, arm]),
                    } | {key: told[key] for key in ("response", "control_token", "new_tokens", "finish")}
        return found

    def _plan(self, name: str, steering: Direction | None, rows: int, layer: int | None, scope: str) -> Plan:
        """A direction as an arm that adds all of it to every row."""
        if steering is None:
            nothing = torch.zeros(self.n_layers, self.d_model)
            idle = Direction(nothing, list(range(self.n_layers)), {"residual_norms": "[]"}, UNSTEERED)
            return plan_arm(self, baseline(0), Tools(SteeringVectors.of(idle)), [{}] * rows)
        vectors = SteeringVectors.of(steering)
        vectors.check(self)
        if layer is None:
            layer = min(steering.layers, key=lambda at: abs(at - self.default_layer()))
        arm = Arm(name, "fixed", layer, steering.name, strength=1.0, unit="raw", scope=scope)
        return plan_arm(self, arm, Tools(vectors), [{}] * rows)


def _interactive(opens: Callable[Given, Model]) -> Callable[Given, InteractiveModel]:
    @wraps(opens)
    def open_interactive(*args: Given.args, **options: Given.kwargs) -> InteractiveModel:
        return InteractiveModel(**vars(opens(*args, **options)))

    return open_interactive


open_model = _interactive(open_plain)


def _texts(prompts: str | Sequence[str]) -> list[str]:
    texts = [prompts] if isinstance(prompts, str) else list(prompts)
    if not texts:
        raise UserError("no prompts were given")
    return texts
