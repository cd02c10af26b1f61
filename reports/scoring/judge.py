"""A language model as the judge of one answer at a time, through any OpenAI-compatible endpoint.

What it is asked is one of `reports.scoring.prompts`. Every verdict that was paid for is appended to a file as it comes, under a
hash of all that was asked, and is never asked for again, also by a later run. What fails is null, and is asked again next time:
errors, and replies that are empty, cut, filtered or no completion.
"""

import contextlib
import hashlib
import json
import logging
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlsplit

import polars as pl

from data.contract import JUDGE_CONCURRENCY, JUDGE_RETRIES, JUDGE_TIMEOUT
from data.errors import UserError
from data.store.files import is_full, no_room, open_own, room_for
from data.store.progress import progress
from reports.scoring.assemble import Given, Verdicts
from reports.scoring.broken import strip_thinking
from reports.scoring.prompts.own import GIVEN
from reports.scoring.prompts.prompt import REFUSAL, Found, JudgePrompt, Messages
from reports.scoring.prompts.replies import KEPT_REPLY, NoVerdictError, said
from reports.scoring.prompts.xstest import PROMPT as DEFAULT

if TYPE_CHECKING:
    import openai

log = logging.getLogger(__name__)

NOTHING = Found(None)
NEEDS = "pass --judge-model, and a --judge-prompt that tells refusal"
KEY_VARIABLES = ("REFUSAL_JUDGE_API_KEY", "OPENAI_API_KEY")
UNPAID, NO_QUOTA = 402, "insufficient_quota"  # trying again can't help
KEPT_AT_ONCE = 32  # answers that a judge opened here reads before what it said is kept
SHOWN_REPLY = 80  # characters of a reply that a message shows
GIVE_UP = 10  # failures in a row, each after all its attempts, after which nothing more is asked

# Conversations of equal form -> the replies of a model that is opened here, in their order.
Engine = Callable[[Sequence[Messages]], Sequence[str]]


@dataclass(frozen=True)
class Judge:
    """Who judges, and how hard it may be asked.

    Attributes:
        model: The endpoint's name of the model.
        url: Base URL, such as `http://127.0.0.1:8000/v1`; without it, OpenAI's or `OPENAI_BASE_URL`.
        concurrency: Requests under way at once.
        timeout: Seconds that one request may take.
        prompt: What it is asked.
        retries: How often a request that failed is sent again.
        engine: The model, where it is opened here and no endpoint is asked; `url` then says which it is.
    """

    model: str
    url: str | None = None
    concurrency: int = JUDGE_CONCURRENCY
    timeout: float = JUDGE_TIMEOUT
    prompt: JudgePrompt = DEFAULT
    retries: int = JUDGE_RETRIES
    engine: Engine | None = None

    @property
    def address(self) -> str | None:
        """Where it is asked; None for the client's default."""
        return self.url or os.environ.get("OPENAI_BASE_URL") or None

    def key(self, prompt: str, answer: str) -> str:
        """SHA-256 of all that a verdict rests on: the judge's model and address, what it is asked, the prompt and the answer.

        A server of one's own may call any model by any name.
        """
        where = [shown(self.address)] if self.address else []
        asked = [self.model, self.prompt.fingerprint, prompt if self.prompt.sees_prompt else "", answer, *where]
        return hashlib.sha256(json.dumps(asked).encode()).hexdigest()


def scorer(_generations: pl.DataFrame, given: Given) -> Verdicts | None:
    """`judge_verdicts`, where there is whom to ask of refusal."""
    judge: Judge | None = given.get("judge")
    if judge is None or judge.prompt.tells != REFUSAL:
        return None
    return partial(judge_verdicts, judge=judge, cache=given["cache"])


def judge_verdicts(answers: pl.DataFrame, judge: Judge, cache: Path) -> pl.Series:
    """`comply`, `partial`, `refuse` or `broken` for each answer, null where no verdict could be had.

    Broken text is not sent. Equal pairs of prompt and answer are asked about once.

    Args:
        answers: The table of `generate` with the column `broken` that `scoring.score` adds.
        judge: Whom to ask.
        cache: The append-only file of verdicts, one JSON object a line.

    Raises:
        UserError: No key, a key that is not accepted, or a model or address that does not exist.
    """
    found = judged(answers, judge, cache)
    verdicts = ["broken" if bad else one.verdict for one, bad in zip(found, answers["broken"], strict=True)]
    return pl.Series("verdict", verdicts, pl.String)


def judged(answers: pl.DataFrame, judge: Judge, cache: Path, *, ask: bool = True) -> list[Found]:
    """What the judge says of each answer, as `judge_verdicts`; without `ask` what it has said already."""
    texts = strip_thinking(answers["response"].fill_null("")).str.strip_chars()
    keys = [
        None if is_broken else judge.key(prompt, text)
        for prompt, text, is_broken in zip(answers["prompt"], texts, answers["broken"], strict=True)
    ]
    items = {key: (p, t) for key, p, t in zip(keys, answers["prompt"], texts, strict=True) if key is not None}
    found = {key: one for key, one in read_cache(cache).items() if key in items}
    todo = {key: item for key, item in items.items() if key not in found}
    if todo and ask:
        asking = _Asking(judge, cache)
        found |= asking.all(todo) if judge.engine is None else asking.here(todo)
        if failed := sum(not found.get(key, NOTHING).says for key in items):
            last = f"; the last it said: {asking.last}" if asking.last else ""
            odd = f"; a reply that holds none: {asking.odd!r}, and all such stand in {cache}" if asking.odd else ""
            log.warning("the judge gave no verdict on %d of %d answers%s%s", failed, len(items), last, odd)
    elif ask and (failed := sum(not one.says for one in found.values())):
        log.warning("the judge gave no verdict on %d of %d answers; its replies stand in %s, and are asked for again if that is "
                    "deleted", failed, len(items), cache)  # fmt: skip
    return [NOTHING if key is None else found.get(key, NOTHING) for key in keys]


def read_cache(path: Path) -> dict[str, Found]:
    """Key -> what was said; nothing is a reply without a verdict. A line that a kill tore, or that is no record, is passed over.

    So is one of an empty reply, which earlier versions kept.
    """
    known: dict[str, Found] = {}
    with contextlib.suppress(FileNotFoundError), path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError, RecursionError):
                entry = json.loads(line)
                verdict, score = entry["verdict"], entry.get("score")
                scored = score is None or (isinstance(score, float) and 0 <= score <= 1)
                found = Found(verdict, score)
                kept = found.says or entry.get("reply", "").strip()
                if isinstance(entry["key"], str) and verdict in (None, *GIVEN) and scored and kept:
                    known[entry["key"]] = found
    return known


class _Asking:
    """One round of questions: workers that share a queue, an append-only file and what the endpoint is known to take."""

    def __init__(self, judge: Judge, cache: Path) -> None:
        self.judge, self.cache = judge, cache
        self.secret = next((value for name in KEY_VARIABLES if (value := os.environ.get(name, "").strip())), "")
        self.client = _client(judge, self.secret) if judge.engine is None else None
        self.options = dict(judge.prompt.options)
        self.proven = False  # whether a request with these options went through
        self.lock = threading.Lock()
        self.stop = threading.Event()
        self.plain = False  # whether a server error was once answered by leaving the schema out
        self.failures = 0
        self.last = ""  # what was last said in place of a verdict
        self.odd = ""  # a whole reply that holds none
        self.fatal: UserError | None = None
        self.closed = False
        self.found: dict[str, Found] = {}

    def here(self, items: dict[str, tuple[str, str]]) -> dict[str, Found]:
        """As `all`, of a model that is opened here."""
        assert self.judge.engine is not None
        keys = list(items)
        with _appending(self.cache) as file, progress(len(keys), 0, "judge", unit="answer") as bar:
            for at in range(0, len(keys), KEPT_AT_ONCE):
                some = keys[at : at + KEPT_AT_ONCE]
                replies = self.judge.engine([self.judge.prompt.messages(key[:16], *items[key]) for key in some])
                for key, reply in zip(some, replies, strict=True):
                    self._note(key, reply, file)
                bar.update(len(some))
        return self.found

    def all(self, items: dict[str, tuple[str, str]]) -> dict[str, Found]:
        """Key -> verdict of every item that the endpoint replied to."""
        first, *rest = items
        # Sets are often sorted by label, and a filter that turns down harmful prompts would look like an endpoint that is down.
        queue = iter([(key, items[key]) for key in [first, *sorted(rest)]])
        with _appending(self.cache) as file:
            self._one(*next(queue), file)  # alone: what the endpoint does not know is learnt once, not by every worker
            threads = [
                threading.Thread(target=self._work, args=(queue, file), daemon=True)
                for _ in range(min(self.judge.concurrency, len(items)))
            ]
            try:
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()
            finally:
                self.stop.set()
                with self.lock:  # nobody writes after this: the file is about to be closed
                    self.closed = True
        if self.fatal:
            raise self.fatal
        if self.failures >= GIVE_UP:
            unasked = sum(1 for _ in queue)
            log.warning("the judge failed %d times in a row: %d answers were not asked about", self.failures, unasked)
        return self.found

    def _work(self, queue: Iterator[tuple[str, tuple[str, str]]], file: IO[str]) -> None:
        while not self.stop.is_set():
            with self.lock:
                item = next(queue, None)
            if item is None:
                return
            self._one(*item, file)

    def _one(self, key: str, item: tuple[str, str], file: IO[str]) -> None:
        import openai

        try:
            reply = self._ask(self.judge.prompt.messages(key[:16], *item))
        except (openai.AuthenticationError, openai.PermissionDeniedError, openai.NotFoundError) as error:
            self._fatal(error)
        except Exception as error:  # whatever an endpoint does, the other answers get their verdicts
            status, code = getattr(error, "status_code", None), getattr(error, "code", None)
            if status is not None and (300 <= status < 400 or status == UNPAID or code == NO_QUOTA):
                self._fatal(error)  # pyright: ignore[reportArgumentType]
            else:
                alone = isinstance(error, NoVerdictError) or (
                    status in (400, 413, 422) and (self.proven or "filter" in str(error))
                )
                self._failed(error, counts=not alone)
        else:
            try:
                self._note(key, reply, file)
            except OSError as error:  # this may be a thread: nobody above it would hear of it
                with self.lock:
                    self.fatal = UserError(no_room(self.cache) if is_full(error) else f"{self.cache}: {error}")
                    self.stop.set()

    def _ask(self, conversation: Messages) -> str:
        """The judge's reply; options that the endpoint turns down are dropped for good once it goes without them."""
        import openai

        options = dict(self.options)
        while True:
            try:
                completion = self._send(conversation, options)
            except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
                if self.proven or not options:
                    raise
                named = [name for name in options if name in str(error)]
                del options[named[0] if named else next(iter(options))]
                continue
            except openai.InternalServerError as error:
                if self.proven or self.plain or "response_format" not in options:
                    raise
                self._failed(error)
                self.plain = True
                del options["response_format"]
                continue
            if not self.proven:
                self.options, self.proven = options, True
            return said(completion)

    def _send(self, conversation: Messages, options: dict[str, Any]) -> Any:
        """One request, of a conversation or of a text."""
        assert self.client is not None
        raw = self.judge.prompt.raw
        if raw is not None:
            text = raw[0] + conversation[0]["content"] + raw[1]
            return self.client.completions.create(model=self.judge.model, prompt=text, **options)
        return self.client.chat.completions.create(
            model=self.judge.model, messages=conversation, **options  # pyright: ignore[reportArgumentType, reportCallIssue]
        )  # fmt: skip

    def _note(self, key: str, reply: str, file: IO[str]) -> None:
        found = self.judge.prompt.read(reply)
        entry = {
            "key": key,
            "model": self.judge.model,
            "template": self.judge.prompt.fingerprint,
            "verdict": found.verdict,
        }
        if found.score is not None:
            entry["score"] = found.score
        if not found.says:
            entry["reply"] = self._hide(reply[:KEPT_REPLY])
            self.odd = self._plain(reply)[:SHOWN_REPLY]
        with self.lock:
            self.failures = 0
            self.found[key] = found
            if not self.closed:
                file.write(json.dumps(entry) + "\n")
                file.flush()

    def _failed(self, error: Exception, *, counts: bool = True) -> None:
        """Note a failure; what says nothing of the endpoint does not count towards giving it up."""
        import openai

        text = str(error) or type(error).__name__
        if isinstance(error, openai.APITimeoutError):
            text = f"timed out after {self.judge.timeout:g} s; --judge-timeout gives it more"
        elif (
            isinstance(error, openai.APIStatusError)
            and not isinstance(error.body, dict)
            and error.response.text not in text
        ):
            text = f"{text}: {error.response.text}"
        text = self._plain(text)
        with self.lock:
            self.last = text
            self.failures = self.failures + 1 if counts else 0
            if self.failures >= GIVE_UP:
                self.stop.set()
        log.info("the judge failed on an answer: %s", text)

    def _fatal(self, error: "openai.APIStatusError") -> None:
        where, status = shown(self.judge.url), error.status_code
        if status == 404:
            text = (
                f"the judge at {where} knows no model {self.judge.model!r} (404); check --judge-model and --judge-url"
            )
        elif status in (UNPAID, 429):
            text = f"the judge at {where} wants to be paid ({status}): {self._plain(str(error))}"
        elif status < 400:
            text = f"the judge at {where} sends elsewhere ({status}), and neither answers nor the key are sent on; check --judge-url"
        else:
            text = f"the judge at {where} did not accept the key ({status}); set {' or '.join(KEY_VARIABLES)}"
        with self.lock:
            self.fatal = UserError(text)
            self.stop.set()

    def _plain(self, text: str) -> str:
        """A server's words on one line."""
        return "".join(c if c.isprintable() else " " for c in self._hide(text))[:KEPT_REPLY]

    def _hide(self, text: str) -> str:
        return text.replace(self.secret, "***") if self.secret else text


def shown(url: str | None) -> str:
    """A base URL as it may be printed and recorded: without user, password and query."""
    if url is None:
        return "the default address"
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.hostname or ''}{f':{parts.port}' if parts.port else ''}{parts.path}"


def _client(judge: Judge, secret: str) -> "openai.OpenAI":
    import openai

    if not secret and judge.url is None and not os.environ.get("OPENAI_BASE_URL"):
        raise UserError(
            f"the judge needs a key: set {' or '.join(KEY_VARIABLES)}, or pass --judge-url of a server of your own"
        )
    host = urlsplit(judge.url or "https:").hostname or ""
    here = host in ("localhost", "::1") or host.startswith("127.")
    if secret and (judge.url or "").startswith("http:") and not here:
        log.warning("the judge's key goes to %s unencrypted", shown(judge.url))
    for name in ("openai", "httpx", "httpx2", "httpcore", "httpcore2"):  # their debug logs hold prompts and headers
        logging.getLogger(name).setLevel(logging.WARNING)
    # A local server wants no key, and the client wants one.
    base, _, query = (judge.address or "").partition("?")
    return openai.OpenAI(
        api_key=secret or "none", base_url=base or None, default_query=dict(parse_qsl(query)), timeout=judge.timeout,
        max_retries=judge.retries, http_client=openai.DefaultHttpxClient(follow_redirects=False),
    )  # fmt: skip


@contextlib.contextmanager
def _appending(path: Path) -> Iterator[IO[str]]:
    """The file, open to append to, with a torn last line closed off."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with room_for(path), open_own(path, "a+b") as raw:
        if raw.tell():
            raw.seek(-1, os.SEEK_END)
            if raw.read(1) != b"\n":
                raw.write(b"\n")
    with room_for(path), open_own(path, "a", encoding="utf-8") as file:
        yield file
