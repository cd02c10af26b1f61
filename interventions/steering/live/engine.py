"""The engine: one thread that answers whoever asks, first come first served, in one batch whose rows come and go."""

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence

from data.contract import BATCH_TOKENS
from data.errors import UserError
from interventions.methods.vectors import SteeringVectors
from interventions.model.model import Model
from interventions.reading.budget import DECODED, default_batch_tokens, ran_out
from interventions.steering.live.asked import Asked, Event, Row
from interventions.steering.live.decoder import Continuous, Whole, decoder_of

logger = logging.getLogger(__name__)


class FullError(Exception):
    """As many answers are waited for as may wait."""


class Engine:
    """Answers rows in a thread of its own."""

    def __init__(self, model: Model, vectors: SteeringVectors, *, rows: int = 32, queue: int = 128) -> None:
        """Start.

        Args:
            model: An open model; the engine alone traces it from now on.
            vectors: What is projected on.
            rows: At most so many answers decode at once.
            queue: At most so many wait beside these.
        """
        self.decoder: Continuous | Whole = decoder_of(model, vectors)  # type: ignore[assignment]
        self.most, self.queue = rows, queue
        self.tokens = DECODED * (default_batch_tokens(model) if model.backend.kind == "local" else BATCH_TOKENS)
        self._waiting: deque[Row] = deque()
        self._more = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def submit(self, asked: Sequence[tuple[Asked, Callable[[Event], None]]]) -> list[Row]:
        """Ask for answers, all or none of them.

        Args:
            asked: What is wanted of each, and what is called, in the engine's thread, with all that is new of it.

        Raises:
            FullError: So many don't fit into the queue.
        """
        rows = [Row(one, tell) for one, tell in asked]
        with self._more:
            if self._closed or len(self._waiting) + len(rows) > self.queue:
                raise FullError
            self._waiting.extend(rows)
            self._more.notify()
        return rows

    def drop(self, rows: Sequence[Row]) -> None:
        """Nobody waits for these any more: they leave before the next step."""
        for row in rows:
            row.gone = True
        with self._more:
            self._waiting = deque(row for row in self._waiting if not row.gone)
            self._more.notify()

    @property
    def load(self) -> tuple[int, int]:
        """How many answers are under way, and how many wait."""
        return len(self.decoder.rows), len(self._waiting)

    def close(self) -> None:
        """End; whoever still waits is told so."""
        with self._more:
            self._closed = True
            self._more.notify()
        self._thread.join(60)

    def _run(self) -> None:
        while True:
            with self._more:
                self._more.wait_for(lambda: self._closed or self._waiting or self.decoder.rows)
                if self._closed:
                    break
                new = self._next()
            self._guarded(new)
        for row in [*self.decoder.rows, *self._waiting]:
            row.end("busy", "the server is going down")

    def _next(self) -> list[Row]:
        """Rows that there is room for, in the order in which they came."""
        under_way = self.decoder.rows
        new: list[Row] = []
        longest = max((row.asked.size for row in under_way), default=0)
        while self._waiting:
            row = self._waiting[0]
            longest, rows = max(longest, row.asked.size), len(under_way) + len(new) + 1
            if rows > self.most or (rows > 1 and rows * longest > self.tokens):
                break
            new.append(self._waiting.popleft())
        return new

    def _guarded(self, new: Sequence[Row]) -> None:
        """Take new rows and a step; what fails is told to those whom it concerns, and the rest goes on."""
        concerned = list(new)
        try:
            if new:
                self.decoder.join(new)
            concerned = [*self.decoder.rows]
            self.decoder.step()
        except Exception as error:
            finish = "error"
            if ran_out(error):
                finish = "busy"
                self.tokens = max(1, self.tokens // 2)
                words = "not enough memory for this answer beside the others; ask again, for fewer tokens"
            else:
                words = str(error) if isinstance(error, UserError) else f"the model failed: {type(error).__name__}"
            logger.warning("answering failed: %s", error)
            for row in [*concerned, *self.decoder.rows]:
                row.end(finish, words)
            self.decoder.clear()
