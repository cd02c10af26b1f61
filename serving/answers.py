"""Answers under way: what the engine tells, as text, and as OpenAI's objects and streams of them."""

import asyncio
import copy
import json
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from interventions.model.control_tokens import control_tokens
from interventions.steering.live.asked import Asked, Ended, Event, Opened, Row, Token
from interventions.steering.live.engine import Engine, FullError
from serving.offer import Offer
from serving.text import Decoding
from serving.wire import ChatWanted, RequestError, TextWanted

LEAST = -9999.0  # a log-probability that JSON can hold
GONE = Ended("gone")


@dataclass
class Choice:
    """One answer.

    Attributes:
        index: Its number.
        asked: What was asked.
        decoding: Its text.
        events: What the engine tells, in order.
        opened: What was decided.
        control: The control token that opens it.
        tokens: So far.
        finish: Why it ended.
    """

    index: int
    asked: Asked
    decoding: Decoding
    events: "asyncio.Queue[Event]" = field(default_factory=asyncio.Queue)
    opened: Opened | None = None
    control: str | None = None
    tokens: list[Token] = field(default_factory=list)
    finish: str | None = None
    row: Row | None = None


class Answers:
    """All that one request asks for."""

    def __init__(self, offer: Offer, engine: Engine, wanted: ChatWanted | TextWanted) -> None:
        """Ask; raises what is wrong with it."""
        self.offer, self.engine, self.wanted = offer, engine, wanted
        self.arm = offer.arm(wanted)
        self.chat = isinstance(wanted, ChatWanted)
        self.id = f"{'chatcmpl' if self.chat else 'cmpl'}-{uuid.uuid4().hex}"
        self.created = int(time.time())
        self._check_engine()
        asked = offer.asked(wanted, self.arm)
        self._controls = {number: name for name, number in control_tokens(offer.model.tokenizer).items()}
        tokenizer = _tokenizer(offer)
        self.choices = [
            Choice(at, one, Decoding(tokenizer, wanted.stops, list(self._controls))) for at, one in enumerate(asked)
        ]
        self._tokenizer = tokenizer

    def _check_engine(self) -> None:
        if self.engine.decoder.samples:
            return
        if self.wanted.temperature or self.wanted.top is not None or self.wanted.projections:
            raise RequestError("answers come back whole and greedy from this backend: leave temperature, logprobs and projections out",
                               code="unsupported_parameter")  # fmt: skip

    def submit(self) -> None:
        """Get in line.

        Raises:
            RequestError: It is full.
        """
        loop = asyncio.get_running_loop()

        def teller(choice: Choice) -> Any:
            def tell(event: Event) -> None:
                if not loop.is_closed():
                    loop.call_soon_threadsafe(choice.events.put_nowait, event)

            return tell

        try:
            rows = self.engine.submit([(choice.asked, teller(choice)) for choice in self.choices])
        except FullError:
            raise RequestError("as many answers are waited for as may wait; ask again in a while", status=429, code="queue_full") from None  # fmt: skip
        for choice, row in zip(self.choices, rows, strict=True):
            choice.row = row

    def drop(self) -> None:
        """Nobody waits for them any more."""
        self.engine.drop([choice.row for choice in self.choices if choice.row is not None])
        for choice in self.choices:
            choice.events.put_nowait(GONE)

    async def parts(self, choice: Choice) -> AsyncIterator[tuple[str, Token | None]]:
        """Pieces of an answer's text as they become certain, each with its token; the first, empty, once it is decided on.

        Raises:
            RequestError: The engine failed.
        """
        while True:
            event = await choice.events.get()
            if isinstance(event, Opened):
                choice.opened = event
                continue
            if isinstance(event, Token):
                if not choice.tokens:
                    choice.control = self._controls.get(event.id)
                    yield "", None
                choice.tokens.append(event)
                yield choice.decoding.add(event.id), event
                if choice.decoding.stopped:
                    choice.finish = "stop"
                    if choice.row is not None:
                        self.engine.drop([choice.row])
                    return
                continue
            if event.finish in ("error", "busy"):
                raise RequestError(event.error, status=503 if event.finish == "busy" else 500)
            if not choice.tokens:
                yield "", None
            rest = choice.decoding.end()
            choice.finish = "stop" if choice.decoding.stopped else event.finish
            if rest:
                yield rest, None
            return

    async def whole(self) -> dict[str, Any]:
        """All of them, as one object."""

        async def through(choice: Choice) -> dict[str, Any]:
            async for _ in self.parts(choice):
                pass
            text = choice.decoding.text
            own = {"message": {"role": "assistant", "content": text, "refusal": None}} if self.chat else {"text": text}
            return self._choice(choice, own, choice.tokens, finish=choice.finish)

        choices = await asyncio.gather(*map(through, self.choices))
        return self._head("chat.completion" if self.chat else "text_completion", choices) | {"usage": self.usage()}

    async def stream(self) -> AsyncIterator[str]:
        """The same as server-sent events, as the tokens come."""
        line: asyncio.Queue[str | RequestError | None] = asyncio.Queue()

        async def through(choice: Choice) -> None:
            try:
                first = True
                async for text, token in self.parts(choice):
                    if token is not None and not text and token.logprob is None and token.projections is None:
                        continue
                    delta = ({"role": "assistant"} if first else {}) | {"content": text}
                    own = {"delta": delta} if self.chat else {"text": text}
                    line.put_nowait(self._chunk(self._choice(choice, own, [token] if token else [], first=first)))
                    first = False
                end = {"delta": {}} if self.chat else {"text": ""}
                line.put_nowait(self._chunk(self._choice(choice, end, [], finish=choice.finish)))
                line.put_nowait(None)
            except RequestError as error:
                line.put_nowait(error)

        tasks = [asyncio.create_task(through(choice)) for choice in self.choices]
        try:
            left = len(tasks)
            while left:
                told = await line.get()
                if isinstance(told, RequestError):
                    yield f"data: {json.dumps(told.body)}\n\n"
                    return
                left -= told is None
                if told is not None:
                    yield told
            if self.wanted.counts_usage:
                yield self._chunk(None)
            yield "data: [DONE]\n\n"
        finally:
            for task in tasks:
                task.cancel()
            self.drop()

    def usage(self) -> dict[str, int]:
        """Tokens that were read and made."""
        per = self.wanted.n or 1
        read = sum(len(choice.asked.ids) for choice in self.choices[::per])
        made = sum(len(choice.tokens) for choice in self.choices)
        return {"prompt_tokens": read, "completion_tokens": made, "total_tokens": read + made}

    def _head(self, kind: str, choices: Sequence[Any]) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.arm.name,
            "choices": list(choices),
        }

    def _chunk(self, choice: dict[str, Any] | None) -> str:
        head = self._head(
            "chat.completion.chunk" if self.chat else "text_completion", [] if choice is None else [choice]
        )
        return f"data: {json.dumps(head if choice is not None else head | {'usage': self.usage()})}\n\n"

    def _choice(
        self, choice: Choice, own: dict[str, Any], tokens: Sequence[Token], *, finish: str | None = None, first: bool = False
    ) -> dict[str, Any]:  # fmt: skip
        made = {"index": choice.index, **own, "logprobs": self._logprobs(choice, tokens), "finish_reason": finish}
        if choice.opened is not None and (first or finish is not None):
            made["steering"] = self.offer.steering(choice.asked.plan, choice.opened, choice.control)
            if first and choice.opened.projections is not None:
                ids = choice.asked.ids[-len(choice.opened.projections) :]
                made["steering"]["prompt"] = [
                    {"text": self._tokenizer.decode([number]), "projections": own}
                    for number, own in zip(ids, choice.opened.projections, strict=True)
                ]
        shadows = [token.projections for token in tokens if token.projections is not None]
        return made | ({"projections": shadows} if shadows else {})

    def _logprobs(self, choice: Choice, tokens: Sequence[Token]) -> dict[str, Any] | None:
        if choice.asked.top is None or not tokens:
            return None
        told = [(self._told(token.id), max(token.logprob or 0.0, LEAST), [(self._told(number), max(share, LEAST)) for number, share in token.top])
                for token in tokens]  # fmt: skip
        if not self.chat:
            ends = [sum(len(text) for text, _, _ in told[:at]) for at in range(len(told))]
            return {"tokens": [text for text, _, _ in told], "token_logprobs": [share for _, share, _ in told],
                    "top_logprobs": [dict(top) for _, _, top in told], "text_offset": ends}  # fmt: skip
        return {"content": [_entry(text, share) | {"top_logprobs": [_entry(*one) for one in top]} for text, share, top in told], "refusal": None}  # fmt: skip

    def _told(self, number: int) -> str:
        return self._tokenizer.decode([number], skip_special_tokens=False)


def _entry(text: str, share: float) -> dict[str, Any]:
    return {"token": text, "logprob": share, "bytes": list(text.encode("utf-8", "replace"))}


_tokenizers: dict[int, Any] = {}


def _tokenizer(offer: Offer) -> Any:
    """A copy of the model's tokenizer that the event loop's thread alone uses: reading a prompt changes one's settings."""
    key = id(offer.model.tokenizer)
    if key not in _tokenizers:
        _tokenizers[key] = copy.deepcopy(offer.model.tokenizer)
    return _tokenizers[key]
