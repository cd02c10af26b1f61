"""A model provider for Inspect: a model as one arm of a run directory steers it.

    inspect eval refusal_steering/refusal --model steered/refusal-smollm2 -M run=runs/mine -M arm=gated

`-M recorded=true` answers with what the run's `generate` answered, and opens no model. Decoding is greedy.
"""

# An optional extra.
# pyright: reportMissingImports=false

import logging
from pathlib import Path
from typing import Any

import anyio
from inspect_ai.model import (
    ChatCompletionChoice,
    ChatMessage,
    ChatMessageAssistant,
    GenerateConfig,
    ModelAPI,
    ModelOutput,
    ModelUsage,
)
from inspect_ai.tool import ToolChoice, ToolInfo

from data.contract import MAX_NEW_TOKENS
from data.errors import UserError
from data.prompts.conversations import as_prompt, parted
from refusal_steering.arms import Opened, open_arm

log = logging.getLogger(__name__)

KEPT = ("arm", "kind", "control_token", "refusal_token", "gate", "strength", "vector", "layer", "new_tokens")
BATCH = 32
PATIENCE = 0.1  # seconds that a batch waits for more to join it


class SteeredAPI(ModelAPI):
    """Answers of a model in one arm; what comes at once is answered in one batch."""

    def __init__(
        self, model_name: str, base_url: str | None = None, api_key: str | None = None,
        config: GenerateConfig | None = None, *, run: str | None = None, arm: str = "baseline", recorded: bool = False,
        batch_size: int = BATCH, **options: Any,
    ) -> None:  # fmt: skip
        """As Inspect calls it.

        Args:
            model_name: A model as `--model` of this tool takes it: the run's.
            base_url: Not used.
            api_key: Not used.
            config: What is not said with each request.
            run: The run directory.
            arm: As `--arm` of `generate` takes it; recorded: as its table calls it.
            recorded: Whether to answer with what the run has answered already.
            batch_size: Prompts that are answered at once, at most.
            options: Other options of `generate`.

        Raises:
            UserError: The run directory lacks what the arm draws on.
        """
        super().__init__(model_name, base_url, api_key, [], config or GenerateConfig())
        if run is None:
            raise UserError("which run directory? pass -M run=FOLDER")
        self.batch_size, self.arm = batch_size, arm
        self.known = recorded_answers(Path(run), model_name, arm) if recorded else None
        self.opened: Opened | None = None if recorded else open_arm(Path(run), model_name, arm, **options)
        self.waiting: list[_Asked] = []
        self.lock = anyio.Lock()

    def max_connections(self) -> int:
        """As many as a batch takes."""
        return self.batch_size

    def max_tokens(self) -> int | None:
        """The default of `generate`."""
        return MAX_NEW_TOKENS

    async def generate(
        self,
        input: list[ChatMessage],
        tools: list[ToolInfo],
        tool_choice: ToolChoice,  # noqa: ARG002
        config: GenerateConfig,
    ) -> ModelOutput:
        """One answer."""
        if tools:
            raise UserError("steered models call no tools")
        if input and input[-1].role == "assistant":
            raise UserError("steered models answer a user's turn; the last one here is the assistant's")
        prompt = as_prompt([{"role": turn.role, "content": turn.text} for turn in input], "a sample")
        if self.known is not None:
            return self._output(self._recorded(prompt))
        asked = _Asked(prompt, config.max_tokens or MAX_NEW_TOKENS)
        self.waiting.append(asked)
        await anyio.sleep(PATIENCE)
        async with self.lock:
            if asked.answer is None:
                await self._answer_waiting(asked)
        assert asked.answer is not None
        return self._output(asked.answer)

    async def _answer_waiting(self, first: "_Asked") -> None:
        """Answer a request, and with it those that wait and ask for as many tokens."""
        like = [one for one in self.waiting if one.tokens == first.tokens and one is not first]
        batch = [first, *like[: self.batch_size - 1]]
        self.waiting = [one for one in self.waiting if one not in batch]
        opened = self.opened
        assert opened is not None
        prompts = [one.prompt for one in batch]
        rows = await anyio.to_thread.run_sync(lambda: opened.answers(prompts, first.tokens))
        for one, row in zip(batch, rows, strict=True):
            one.answer = row

    def _recorded(self, prompt: str) -> dict[str, Any]:
        assert self.known is not None
        if prompt not in self.known:
            raise UserError(
                f"the run has no answer of arm {self.arm!r} to {parted(prompt)[1][:60]!r}: recorded=true takes its own prompts"
            )
        return self.known[prompt]

    def _output(self, row: dict[str, Any]) -> ModelOutput:
        message = ChatMessageAssistant(content=row["response"], model=self.model_name, source="generate")
        cut = row["finish"] == "length"
        return ModelOutput(
            model=self.model_name,
            choices=[ChatCompletionChoice(message=message, stop_reason="max_tokens" if cut else "stop")],
            usage=ModelUsage(output_tokens=row["new_tokens"], total_tokens=row["new_tokens"]),
            metadata={name: row[name] for name in KEPT if row[name] is not None},
        )


class _Asked:
    """A prompt that waits for its answer."""

    def __init__(self, prompt: str, tokens: int) -> None:
        self.prompt, self.tokens = prompt, tokens
        self.answer: dict[str, Any] | None = None


def recorded_answers(run: Path, model: str, arm: str) -> dict[str, dict[str, Any]]:
    """Prompt -> its row of a run's generations in one arm.

    Raises:
        UserError: There is no such arm, or another model answered.
    """
    import polars as pl

    from commands.framework.artefacts import GENERATIONS

    if not GENERATIONS.path(run).exists():
        raise UserError(f"{run} has no answers: run `python cli.py --run {run} generate` first")
    table = GENERATIONS.read(run)
    mine = table.filter(pl.col("arm") == arm)
    if mine.is_empty():
        raise UserError(f"{run} has no arm {arm!r}; there are {', '.join(table['arm'].unique(maintain_order=True))}")
    models = mine["model"].unique().to_list()
    if models != [model]:
        raise UserError(f"{run} holds answers of {', '.join(models)}, not of {model}")
    return {row["prompt"]: row for row in mine.to_dicts()}
