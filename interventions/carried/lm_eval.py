"""The steered model as a guest of lm-eval: its own `hf` model, whose batches an arm edits.

lm-eval scores what its `hf` model's forward pass puts out for a batch of rows (context and continuation), or what its
`generate` returns. Batching, tokenizing, scoring and stopping stay lm-eval's; this class only finds out where each row's
context ends, so that an arm acts from the last context token on: on every logit that is scored. (Published code steered
the last position alone, whose logits are dropped: arXiv 2603.13359's capability figures are those of unsteered models.)
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from transformers import LogitsProcessor, LogitsProcessorList

from interventions.carried.hooks import Decided, HookedArm, digest
from interventions.model.model import Model

Base: Any = HFLM  # the decorator that registers it hides its type


@dataclass(frozen=True)
class Place:
    """Where a row's scored logits are.

    Attributes:
        start: Position of the last context token, which the first scored logit stands at.
        stop: One beyond the last scored logit.
        tasks: Whose row it is.
        whole: Whether an arm's instruction, if it has one, is in the row's context: nothing was cut off.
    """

    start: int
    stop: int
    tasks: frozenset[str]
    whole: bool

    def fits(self, other: "Place | None") -> bool:
        """Whether rows of the same tokens may share a forward pass."""
        return other is None or (self.start, self.stop) == (other.start, other.stop)

    def shared_with(self, other: "Place | None") -> "Place":
        """This place, as that of both rows."""
        return self if other is None else replace(self, tasks=self.tasks | other.tasks)


class SteeredLM(Base):
    """lm-eval's `hf` model of this process's module in one arm; as the arm `baseline` it is that model.

    Attributes:
        changed: Tasks of which a scored logit has been seen to differ from the unsteered one, bit for bit, in the
            same batch. Batches are computed a second time, unsteered, until one does.
    """

    def __init__(self, model: Model, arm: HookedArm, *, batch_size: int | str, chat: bool) -> None:
        """Take an open model; `chat` says whether contexts come in its chat template."""
        super().__init__(
            pretrained=model.module, tokenizer=copy.deepcopy(model.tokenizer), batch_size=batch_size, backend="causal"
        )
        self.changed: set[str] = set()
        self._hooked, self._chat = arm, chat
        self._acts = not arm.arm.is_baseline
        self._instructs = arm.arm.does.instructs
        self._lead = f"{arm.arm.text}\n\n" if self._instructs else ""
        self._owners: list[frozenset[str]] = []  # of the requests under way
        self._has_contexts = True
        self._places: dict[bytes, Place] = {}  # of the rows under way
        self._met: set[bytes] = set()
        self._texts: dict[str, frozenset[str]] = {}  # context -> tasks, of generation
        self._now: tuple[frozenset[str], bool] = (frozenset(), False)  # of the batch under way

    # Likelihoods: lm-eval's loop calls `_model_call` with right-padded rows; what is known of each is looked up there.

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """lm-eval's, with an instruction before each context if that is the arm."""
        self._owners, self._has_contexts = [frozenset([str(request.task_name)]) for request in requests], True
        return super().loglikelihood(self._instructed(requests), disable_tqdm=disable_tqdm)

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """lm-eval's; its windows don't say whose they are, so that all tasks of a call own all of them."""
        self._owners, self._has_contexts = [frozenset(str(request.task_name) for request in requests)], False
        return super().loglikelihood_rolling(requests, disable_tqdm=disable_tqdm)

    def _loglikelihood_tokens(
        self,
        requests: list[tuple[tuple[str, str], list[int], list[int]]],
        disable_tqdm: bool = False,
        override_bs: int | None = None,
    ) -> list[tuple[float, bool]]:
        """lm-eval's; rows of the same tokens but another last context token go in calls of their own."""
        if not self._acts:
            return super()._loglikelihood_tokens(requests, disable_tqdm=disable_tqdm, override_bs=override_bs)
        owners = self._owners if len(self._owners) == len(requests) else self._owners[:1] * len(requests)
        found: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        for places, numbers in self._apart(requests, owners):
            self._places, self._met = places, set()
            part = [requests[number] for number in numbers]
            results = super()._loglikelihood_tokens(part, disable_tqdm=disable_tqdm, override_bs=override_bs)
            if self._met != set(places):
                raise RuntimeError(
                    "this lm-eval forms its batches in a way that this tool does not know: steering missed some"
                )
            for number, result in zip(numbers, results, strict=True):
                found[number] = result
        self._places = {}
        return found

    def _apart(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], owners: Sequence[frozenset[str]]
    ) -> list[tuple[dict[bytes, Place], list[int]]]:
        """Requests in as few parts as it takes for a row's tokens to say where its context ends; nearly always one.

        lm-eval computes equal tokens once wherever their contexts end, which steering may not; and of the shorter
        continuation it then reads logits too early (0.4.13, `Collator.get_cache`), which can't happen within a part.
        """
        parts: list[tuple[dict[bytes, Place], list[int]]] = []
        for number, (_, context, continuation) in enumerate(requests):
            ids = (context + continuation)[-(self.max_length + 1) :][:-1]
            whole = self._has_contexts and len(context) + len(continuation) <= self.max_length + 1
            key, start = digest(unpadded(ids)), len(ids) - len(continuation)
            place = Place(start, len(ids), owners[number], whole)
            part = next((part for part in parts if place.fits(part[0].get(key))), None)
            if part is None:
                part = {}, []
                parts.append(part)
            part[0][key] = place.shared_with(part[0].get(key))
            part[1].append(number)
        return parts

    def _model_call(self, inps: torch.Tensor, attn_mask: Any = None, labels: Any = None) -> torch.Tensor:
        """Logits of a batch of right-padded rows, (rows, tokens, vocabulary), from each row's last context token on steered."""
        rows = inps.tolist()
        keys = [digest(unpadded(row)) for row in rows]
        known = {at: self._places[key] for at, key in enumerate(keys) if key in self._places}
        if not known:  # the baseline; or a batch of ones that lm-eval tries sizes with
            return super()._model_call(inps, attn_mask, labels)
        self._met.update(keys[at] for at in known)
        ends = torch.tensor([known[at].start if at in known else -1 for at in range(len(rows))])
        decided = self._hooked.decide([row[: max(end, 0) + 1] for row, end in zip(rows, ends.tolist(), strict=True)])
        with self._hooked.steering(decided, ends):
            logits = super()._model_call(inps, attn_mask, labels)
        if self._hooked.biases:
            at = torch.arange(len(rows)), ends.clamp(min=0)
            logits[at] = self._hooked.biased(logits[at], decided)
        if any(not place.tasks <= self.changed for place in known.values()):
            self._compare(inps, logits, known)
        return logits

    def _compare(self, inps: torch.Tensor, logits: torch.Tensor, known: dict[int, Place]) -> None:
        """Note the tasks of rows whose scored logits are not the unsteered ones."""
        plain = None if self._instructs else super()._model_call(inps)
        for at, place in known.items():
            scored = slice(place.start, place.stop)
            if place.whole if plain is None else not torch.equal(logits[at, scored], plain[at, scored]):
                self.changed |= place.tasks

    # Generation: lm-eval pads contexts on the left, and hands them to transformers' `generate`.

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """lm-eval's, with an instruction before each context if that is the arm."""
        requests = self._instructed(requests)
        self._texts = {}
        for request in requests:
            text = request.args[0]
            self._texts[text] = self._texts.get(text, frozenset()) | {str(request.task_name)}
        return super().generate_until(requests, disable_tqdm=disable_tqdm)

    def tok_batch_encode(
        self,
        strings: list[str],
        padding_side: str = "left",
        left_truncate_len: int | None = None,
        truncation: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """lm-eval's; whose contexts these are, and whether they are whole, is kept for `_model_generate`."""
        ids, mask = super().tok_batch_encode(strings, padding_side, left_truncate_len, truncation)
        owners = frozenset[str]().union(*(self._texts.get(text, frozenset()) for text in strings))
        self._now = owners, left_truncate_len is None or ids.shape[1] < left_truncate_len
        return ids, mask

    def _model_generate(
        self, context: torch.Tensor, max_length: int, stop: list[str], **generation_kwargs: Any
    ) -> torch.Tensor:
        """Contexts with their continuations, (rows, tokens), steered."""
        if not self._acts:
            return super()._model_generate(context, max_length, stop, **generation_kwargs)
        real = generation_kwargs["attention_mask"].bool()
        decided = self._hooked.decide([row[there].tolist() for row, there in zip(context, real, strict=True)])
        first = FirstLogits(context.shape[1], self._hooked, decided)
        with self._hooked.steering(decided, torch.full((len(context),), context.shape[1] - 1)):
            tokens = super()._model_generate(
                context, max_length, stop, logits_processor=LogitsProcessorList([first]), **generation_kwargs
            )
        tasks, whole = self._now
        if not tasks <= self.changed and (
            whole if self._instructs else self._differs(context, first, generation_kwargs)
        ):
            self.changed |= tasks
        return tokens

    def _differs(self, context: torch.Tensor, first: "FirstLogits", generation_kwargs: dict[str, Any]) -> bool:
        """Whether the logits that the first new tokens were taken from are not the unsteered ones."""
        plain = FirstLogits(context.shape[1])
        with torch.random.fork_rng():  # it must draw nothing that later samples would miss
            super()._model_generate(
                context, context.shape[1] + 1, [], logits_processor=LogitsProcessorList([plain]), **generation_kwargs
            )
        assert plain.logits is not None and first.logits is not None
        return not torch.equal(plain.logits, first.logits)

    # An instruction before the prompt.

    def _instructed(self, requests: list[Instance]) -> list[Instance]:
        if not self._lead or self._chat:
            return requests
        led = [copy.copy(request) for request in requests]
        for request in led:
            request.arguments = (self._lead + request.args[0], *request.args[1:])
        return led

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """lm-eval's, with an instruction before the user's first words if that is the arm."""
        first = next((at for at, turn in enumerate(chat_history) if turn["role"] == "user"), None)
        if self._lead and first is not None:
            turn = chat_history[first]
            turn = turn | {"content": self._lead + turn["content"]}
            chat_history = [*chat_history[:first], turn, *chat_history[first + 1 :]]
        return super().apply_chat_template(chat_history, add_generation_prompt)

    def get_model_info(self) -> dict[str, Any]:
        """Nothing: lm-eval's own asks the hub."""
        return {}


class FirstLogits(LogitsProcessor):
    """Adds an arm's bias to the logits of the first new token, and keeps them."""

    def __init__(self, width: int, arm: HookedArm | None = None, decided: Decided | None = None) -> None:
        """Know the first token by the width of the contexts."""
        self.logits: torch.Tensor | None = None
        self._width, self._hooked, self._decided = width, arm, decided

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Scores (rows, vocabulary) of the next token."""
        if input_ids.shape[1] != self._width:
            return scores
        if self._hooked is not None and self._decided is not None:
            scores = self._hooked.biased(scores, self._decided)
        self.logits = scores.clone()
        return scores


def unpadded(ids: Sequence[int]) -> Sequence[int]:
    """Without zeros at the end, which lm-eval pads with; a row may end in such a token of its own, and loses it too."""
    end = len(ids)
    while end and ids[end - 1] == 0:
        end -= 1
    return ids[:end]
