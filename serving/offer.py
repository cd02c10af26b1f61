"""What a run offers to answer with: its arms, what they draw on, and what a request makes of them."""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from data.contract import MEAN, SCOPES
from data.errors import UserError
from data.prompts.conversations import CLOSE, OPEN, as_prompt, instructed
from interventions.model.control_tokens import control_tokens
from interventions.model.model import Model
from interventions.model.prompt_format import encode
from interventions.steering.arms import NEXT, Arm, parse_arms
from interventions.steering.live.asked import Asked, Opened, Sampling
from interventions.steering.plans import Plan, Tools, plan_arm
from serving.wire import ChatWanted, RequestError, TextWanted, Wanted

ROLES = ("system", "developer", "user", "assistant")
KEYS = ("strength", "layer", "category", "gate", "scope")
KNOWN_PLANS = 256


@dataclass
class Offer:
    """A run's arms.

    Attributes:
        model: The model.
        tools: What its arms draw on.
        arms: The arms that are listed.
        default: What an arm that is not listed takes from the command's options.
        most: New tokens of an answer at most.
        usual: New tokens where a request names no number.
        about: What the page is told of the run beside.
    """

    model: Model
    tools: Tools
    arms: Sequence[Arm]
    default: Arm
    most: int
    usual: int
    about: Mapping[str, Any] = field(default_factory=dict)
    _plans: dict[str, Plan] = field(default_factory=dict)
    _reading: threading.Lock = field(default_factory=threading.Lock)

    @property
    def names(self) -> list[str]:
        """The arms, as models are called."""
        return [arm.name for arm in self.arms]

    def arm(self, wanted: Wanted) -> Arm:
        """The arm that a request names, with what it says otherwise.

        Raises:
            RequestError: There is none, or it can't be so.
        """
        word = wanted.arm or wanted.model
        listed = next((arm for arm in self.arms if arm.name == word), None)
        given = {key: getattr(wanted, key) for key in KEYS if getattr(wanted, key) is not None}
        self._check(given)
        try:
            if listed is not None and not given:
                arm = listed
            elif listed is not None:
                text = _with(listed, given)
                arm = replace(parse_arms([text], self._from(listed, given))[0], name=text)
            else:
                (plain,) = parse_arms([word], self.default)
                text = _with(plain, given) if given else word
                arm = replace(parse_arms([text], self.default)[0], name=text)
        except UserError as error:
            if listed is None and wanted.arm is None:
                raise RequestError(f"no model {word!r}; there are {', '.join(self.names)}, or any arm as --arm takes it",
                                   status=404, param="model", code="model_not_found") from None  # fmt: skip
            raise RequestError(str(error), param="arm") from None
        if arm.reads_labels:
            raise RequestError(f"arm {arm.name!r} reads a prompt's label, and a request has none", param="arm")
        if arm.maps and "layer" not in given and self.tools.lowrank is not None:
            arm = replace(arm, layer=self.tools.lowrank.layer)
        return arm

    def _from(self, listed: Arm, given: Mapping[str, Any]) -> Arm:
        """What a listed arm hands on to one that differs from it: its layer, strength, unit, category and scope."""
        own = {
            key: getattr(listed, key) for key in ("layer", "strength", "unit", "category", "scope") if key not in given
        }
        return replace(self.default, **own)

    def _check(self, given: Mapping[str, Any]) -> None:
        known = [*self.tools.vectors.categories, MEAN, *control_tokens(self.model.tokenizer)]
        if given.get("category", MEAN) not in known:
            raise RequestError(f"no category {given['category']!r}; there are {', '.join(known)}", param="category")
        if given.get("scope", "all") not in SCOPES:
            raise RequestError(f"scope is one of {', '.join(SCOPES)}", param="scope")
        if "gate" in given and given["gate"] not in self.tools.every_gate:
            there = ", ".join(name for name in self.tools.every_gate if name != "perfect") or "none"
            raise RequestError(f"this run has no gate {given['gate']!r}; there are: {there}", param="gate")
        if given.get("layer", 0) >= self.model.n_layers:
            raise RequestError(f"layer {given['layer']}: the model has layers 0 to {self.model.n_layers - 1}", param="layer")  # fmt: skip

    def plan(self, arm: Arm) -> Plan:
        """An arm in tensors, for one row; the same one for the same setting.

        Raises:
            RequestError: It draws on what the run does not have.
        """
        key = repr(sorted(arm.setting.items()))
        if key not in self._plans:
            try:
                plan = plan_arm(self.model, arm, self.tools, [{}])
            except UserError as error:
                raise RequestError(str(error), param="arm") from None
            if len(self._plans) >= KNOWN_PLANS:
                self._plans.clear()
            self._plans[key] = plan
        return self._plans[key]

    def asked(self, wanted: ChatWanted | TextWanted, arm: Arm) -> list[Asked]:
        """What is asked of the engine: for each prompt `n` answers. Tokenizers are not shared between threads that read.

        Raises:
            RequestError: Messages that can't be read, or too many tokens.
        """
        plan, steps = self.plan(arm), wanted.most or self.usual
        if steps > self.most:
            raise RequestError(
                f"at most {self.most} new tokens are made here; see --max-new-tokens", param="max_tokens"
            )
        texts = [_prompt(wanted)] if isinstance(wanted, ChatWanted) else _texts(wanted)
        found: list[Asked] = []
        for text in texts:
            with self._reading:
                ids, user = self._encoded(wanted, arm, text, steps)
                gates = self.tools.shipped(self.model, [plan], [{"prompt": text, "label": None, "category": None}])
            for number in range(wanted.n or 1):
                how = Sampling(wanted.temperature or 0.0, wanted.top_p or 1.0, ((wanted.seed or 0) + number) % 2**63)
                found.append(Asked(ids, user, plan, gates, steps, how, wanted.top, wanted.projections))
        return found

    def _encoded(self, wanted: Wanted, arm: Arm, text: str, steps: int) -> tuple[list[int], tuple[int, int]]:
        tokenizer = self.model.tokenizer
        try:
            if isinstance(wanted, ChatWanted):
                put = instructed(arm.text, text) if arm.does.instructs else text
                encoded = encode(tokenizer, [put], room=steps)
                return encoded.ids[0], encoded.user[0]
        except UserError as error:
            raise RequestError(str(error).replace("--max-new-tokens", "max_tokens"), param="messages") from None
        ids = tokenizer(f"{arm.text}\n\n{text}" if arm.does.instructs else text)["input_ids"]
        if not ids or len(ids) + steps - 1 > tokenizer.model_max_length:
            raise RequestError(f"the prompt has {len(ids)} tokens, and with {steps} new ones the model has {tokenizer.model_max_length} places",
                               param="prompt")  # fmt: skip
        return ids, (min(1, len(ids) - 1), len(ids))

    def steering(self, plan: Plan, opened: Opened, control: str | None) -> dict[str, Any]:
        """What was done to an answer, and why."""
        arm = plan.arm
        gate = None
        if opened.gate is not None:
            own = float(self.tools.every_gate[arm.gate].threshold) if arm.threshold is None else arm.threshold
            gate = {"name": arm.gate, "score": opened.gate, "threshold": own, "harmful": opened.gate >= own}
        steers = arm.steers or arm.does.biases
        return {
            "arm": arm.name,
            "kind": arm.kind,
            "vector": plan.names[opened.vector] if arm.steers and arm.has_vectors else None,
            "strength": opened.strength if steers else None,
            "strength_unit": arm.unit if steers else None,
            "layer": arm.its_layer,
            "scope": arm.scope if arm.steers else None,
            "gate": gate,
            "control_token": control,
            "refusal_token": None if control == "respond" else control,
            "refusal_probability": opened.refusal,
        }


def _with(arm: Arm, given: Mapping[str, Any]) -> str:
    """An arm's words with some keys said otherwise."""
    values = {key: repr(value) if isinstance(value, float) else str(value) for key, value in given.items()}
    gone = {*values, "benign"} if "strength" in values else {*values}
    parts = [part for part in NEXT.split(arm.said) if part and part.partition("=")[0].strip() not in gone]
    return f"{arm.kind}:{','.join([*(f'{key}={value}' for key, value in values.items()), *parts])}"


def _prompt(wanted: ChatWanted) -> str:
    """A conversation as a prompt.

    Raises:
        RequestError: Its last turn is not the user's, or a turn can't be read.
    """
    for message in wanted.messages:
        if message.get("role") not in ROLES:
            raise RequestError(f"a message's role is one of {', '.join(ROLES)}", param="messages")
        if message.get("tool_calls") or any(mark in str(message.get("content")) for mark in (OPEN, CLOSE)):
            raise RequestError("a message calls tools, or holds U+E010 or U+E011, which mark where conversations end", param="messages")  # fmt: skip
    if wanted.messages[-1]["role"] != "user":
        raise RequestError("the last message must be the user's: an answer that was begun is not gone on with", param="messages")  # fmt: skip
    try:
        prompt = as_prompt(wanted.messages, "the request")
    except UserError as error:
        raise RequestError(str(error), param="messages") from None
    if not prompt.rpartition(CLOSE)[2].strip():
        raise RequestError("the last message is empty", param="messages")
    return prompt


def _texts(wanted: TextWanted) -> list[str]:
    return [wanted.prompt] if isinstance(wanted.prompt, str) else wanted.prompt
