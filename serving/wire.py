"""What requests may say, in OpenAI's words and this tool's own; what is not read is refused, not overlooked."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

LONGEST = 200_000  # characters of a text
Finite = Annotated[float, Field(allow_inf_nan=False)]
Text = Annotated[str, Field(max_length=LONGEST)]
Stops = Text | Annotated[list[Text], Field(max_length=16)] | None
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "frequency_penalty": (None, 0),
    "presence_penalty": (None, 0),
    "repetition_penalty": (None, 1),
    "logit_bias": (None, {}),
    "tools": (None, []),
    "tool_choice": (None, "none", "auto"),
    "functions": (None, []),
    "function_call": (None, "none", "auto"),
    "response_format": (None, {"type": "text"}),
    "modalities": (None, ["text"]),
    "best_of": (None, 1),
    "suffix": (None, ""),
    "echo": (None, False),
    "top_k": (None, -1, 0),
    "min_p": (None, 0),
    "type": (None, "chatcompletions", "completions"),
    "parallel_tool_calls": (None, True, False),
    "reasoning_effort": (None, "none"),
    "include_reasoning": (None, True, False),
    "chat_template_kwargs": (None, {}),
}  # parameters of others' servers, and the values with which leaving them out changes nothing
IDLE = (
    "user",
    "metadata",
    "store",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "verbosity",
)  # say nothing of an answer


class RequestError(Exception):
    """A request that can't be answered, in OpenAI's shape."""

    def __init__(self, words: str, *, status: int = 400, param: str | None = None, code: str | None = None) -> None:
        """With an HTTP status."""
        super().__init__(words)
        self.status, self.param, self.code = status, param, code

    @property
    def body(self) -> dict[str, Any]:
        """As JSON."""
        kinds = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
        kind = kinds.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


class Wanted(BaseModel):
    """What both kinds of requests may say."""

    model_config = ConfigDict(extra="allow", strict=False)

    model: Annotated[str, Field(max_length=1000)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[Finite, Field(ge=0, le=2)] | None = None
    top_p: Annotated[Finite, Field(gt=0, le=1)] | None = None
    n: Annotated[int, Field(ge=1, le=16)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**64)] | None = None
    stop: Stops = None
    stream: bool | None = None
    stream_options: dict[str, Any] | None = None
    # This tool's own.
    arm: Annotated[str, Field(max_length=1000)] | None = None
    strength: Finite | None = None
    layer: Annotated[int, Field(ge=0, le=99_999)] | None = None
    category: Annotated[str, Field(max_length=200)] | None = None
    gate: Annotated[str, Field(max_length=200)] | None = None
    scope: Annotated[str, Field(max_length=20)] | None = None
    projections: bool = False

    @property
    def stops(self) -> list[str]:
        """Texts that end an answer."""
        return [self.stop] if isinstance(self.stop, str) else [text for text in self.stop or () if text]

    @property
    def counts_usage(self) -> bool:
        """Whether a stream ends with the usage."""
        return bool((self.stream_options or {}).get("include_usage"))


class ChatWanted(Wanted):
    """`/v1/chat/completions`."""

    messages: Annotated[list[dict[str, Any]], Field(min_length=1, max_length=1000)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None

    @property
    def most(self) -> int | None:
        """New tokens at most."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def top(self) -> int | None:
        """How many alternatives to tell of; None: no log-probabilities."""
        return (self.top_logprobs or 0) if self.logprobs else None


class TextWanted(Wanted):
    """`/v1/completions`."""

    prompt: Text | Annotated[list[Text], Field(min_length=1, max_length=128)]
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None

    @property
    def most(self) -> int | None:
        """New tokens at most."""
        return self.max_tokens

    @property
    def top(self) -> int | None:
        """How many alternatives to tell of; None: no log-probabilities."""
        return self.logprobs


def read(kind: type[ChatWanted] | type[TextWanted], body: bytes) -> Any:
    """A request's body.

    Raises:
        RequestError: It is no JSON, or says what is not read.
    """
    try:
        wanted = kind.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise RequestError(f"{where + ': ' if where else ''}{first['msg']}", param=where or None) from None
    for name, value in (wanted.model_extra or {}).items():
        if name in IDLE or (name in NEUTRAL and any(value == one for one in NEUTRAL[name])):
            continue
        known = "is not read here; leave it out" if name in NEUTRAL else "is no parameter of this server"
        raise RequestError(f"{name[:100]!r} {known}", param=name[:100], code="unsupported_parameter")
    return wanted
