"""The one backend: where a trace runs — here, shipped and rebuilt in this process, on an NDIF server, or in a vLLM engine.

Every function that traces takes `backend=model.backend.nnsight(model.nnsight)` and is the same wherever it runs. What
comes in batches goes through `Backend.each`, which keeps several jobs under way where that is of use.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from data.contract import IN_FLIGHT, REQUESTS, TIMEOUT
from data.errors import UserError
from data.store.journal import Journal
from data.store.progress import Watch
from interventions.backends.pool import Group, T, _Pool, _Task, _task

if TYPE_CHECKING:
    from interventions.backends.ndif.client import Client
    from interventions.backends.vllm.engine import Engine


BATCHES_A_JOB, JOB_BYTES = 8, 32 << 20  # batches travel together up to these
SUMMED_BATCHES = 24  # of one job, where its batches are added up
SUMMED_BYTES = 16 << 20  # of a whole run of such jobs, where it can be
LARGE_SUMS = 4 << 20  # of one such job: for each part of this size it may hold as many batches again
LINE_BYTES = 128 << 20  # of results that may come in at once, whatever the model


@dataclass(frozen=True)
class VLLMOptions:
    """How a vLLM engine is opened.

    Attributes:
        tensor_parallel: How many devices share each tensor.
        requests: How many requests are under way at once, at most.
        max_model_len: Tokens that a prompt with its answer may have; None: those of the model, up to `MOST_LENGTH`.
        serve: Address of an nnsight-serve that holds the weights; empty for an engine of this process.
        timeout: Seconds that a request to it may take.
        insecure: Whether a key may go to another machine over plain http.
        memory: Share of a GPU's memory that an engine of this process may take; None: vLLM's own default.
    """

    tensor_parallel: int = 1
    requests: int = REQUESTS
    max_model_len: int | None = None
    serve: str = ""
    timeout: float = TIMEOUT
    insecure: bool = False
    memory: float | None = None


@dataclass(frozen=True)
class Backend:
    """Where traces run.

    Attributes:
        kind: `local`, `simulate` or `remote`; the `backend` of artefacts.
        client: How to reach the server, for `remote`.
        in_flight: How many jobs are under way at once.
        sandbox: Whether a simulation, or a server that would not, treats the user as NDIF treats ordinary keys.
        most_bytes: What may come back of one artefact's jobs; None: any number.
        vllm: How a vLLM engine is opened; None where transformers' model runs.
        engine: The open engine, of an open model.
    """

    kind: str = "local"
    client: "Client | None" = None
    in_flight: int = 1
    sandbox: bool = False
    most_bytes: int | None = None
    vllm: VLLMOptions | None = None
    engine: "Engine | None" = field(default=None, compare=False)

    @property
    def has_module(self) -> bool:
        """Whether transformers' model is here, with its weights."""
        return self.client is None and self.vllm is None

    @property
    def is_remote(self) -> bool:
        """Whether traces run on a server: no weights are loaded here."""
        return self.client is not None

    @property
    def address(self) -> str:
        """The server's address; empty where traces run here."""
        return self.client.address if self.client is not None else ""

    @property
    def is_loopback(self) -> bool:
        """Whether that server is on this machine, and sees its files."""
        from interventions.backends.ndif.client import is_loopback

        return is_loopback(self.address)

    @property
    def watch(self) -> Watch | None:
        """Follows the jobs under way; None where traces run here."""
        return self.client.watch if self.client is not None and isinstance(self.client.watch, Watch) else None

    @property
    def traffic(self) -> dict[str, int]:
        """What went over the line so far; empty where traces run here."""
        return self.client.traffic.counts() if self.client is not None else {}

    def nnsight(self, model: Any) -> Any:
        """What nnsight's `trace`, `generate` or `session` of this model is given as `backend=`.

        Raises:
            UserError: The model runs in a vLLM engine, which reads and answers requests and runs no other trace.
        """
        if self.vllm is not None:
            raise UserError(
                "this takes the model's weights, gradients, or the probabilities of given tokens, which --engine vllm doesn't give: pass --engine transformers"
            )
        if self.kind == "simulate":
            from interventions.backends.simulated import Simulation

            return Simulation(model, sandbox=self.sandbox)
        if self.client is None:
            return None
        from interventions.backends.ndif.request import Request

        task: _Task | None = getattr(_task, "now", None)
        return Request(model, self.client, "the request") if task is None else task.job(model, self.client)

    def each(
        self, journal: Journal, work: Callable[[Group], T], batch_bytes: int, *, job_bytes: int | None = None
    ) -> Iterator[tuple[Group, T]]:
        """Do the work of every group of batches that the journal has not seen done; in any order.

        Work that an earlier process sent away is collected, not done again. A group that is too much for the server
        is done in halves.

        Args:
            journal: The plan and what is done; the caller notes what it has got.
            work: Traces one group; called in several threads, one tracing at a time, if the backend is far.
            batch_bytes: What comes back of one batch, at most: batches travel together up to `JOB_BYTES`.
            job_bytes: What comes back of one job in its place, where that is the same for any number of batches.

        Raises:
            UserError: A job failed for good, or a deadline passed.
        """
        todo = [number for number, _ in journal.todo()]
        if not self.is_remote:
            for number in todo:
                yield (number,), work((number,))
            return
        batch_bytes = max(batch_bytes, 1)
        most = self._most(len(todo), batch_bytes, job_bytes)
        workers = max(1, min(self.in_flight, LINE_BYTES // (job_bytes or most * batch_bytes)))
        pool = _Pool(journal, work, lambda group: job_bytes or len(group) * batch_bytes)
        yield from pool.run(journal.groups(most), workers)

    def _most(self, batches: int, batch_bytes: int, job_bytes: int | None) -> int:
        """Batches a job: of few, rather every request under way than long ones."""
        if job_bytes is not None:
            jobs = max(1, min(self.in_flight, SUMMED_BYTES // job_bytes))
            return max(1, min(SUMMED_BATCHES * max(1, job_bytes // LARGE_SUMS), -(-batches // jobs)))
        return max(1, min(BATCHES_A_JOB, JOB_BYTES // batch_bytes, -(-batches // self.in_flight)))

    def announce(
        self, what: str, journal: Journal, batch_bytes: int, all_bytes: int = 0, *, job_bytes: int | None = None
    ) -> None:
        """Say how many jobs are left to do and what comes back, before anything is sent; nothing where traces run here.

        Args:
            what: What they are for.
            journal: As `each` is given.
            batch_bytes: As `each` is given.
            all_bytes: What comes back of all batches that are not done.
            job_bytes: As `each` is given.

        Raises:
            UserError: It is more than `most_bytes`.
        """
        if not self.is_remote or not journal.todo():
            return
        requests = len(journal.groups(self._most(len(journal.todo()), max(batch_bytes, 1), job_bytes)))
        all_bytes = all_bytes if job_bytes is None else requests * job_bytes
        words = f"{requests} request{'s' if requests > 1 else ''}, {all_bytes / 1e6:,.1f} MB to come back"
        if job_bytes is None and self.most_bytes is not None and all_bytes > self.most_bytes:
            raise UserError(f"{what}: {words}: pass --yes if that is meant, or read fewer --layers or a smaller --limit; vectors of the "
                            "methods mean and contrastive, and probe --fit mass-mean, need none of it: sums come back alone")  # fmt: skip
        if self.watch is not None:
            self.watch.say(f"{what}: {words}")


LOCAL = Backend()


def open_backend(
    kind: str,
    host: str | None = None,
    *,
    timeout: float = TIMEOUT,
    in_flight: int = IN_FLIGHT,
    watch: Watch | None = None,
    sandbox: bool = False,
    insecure: bool = False,
    most_bytes: int | None = None,
    vllm: VLLMOptions | None = None,
) -> Backend:
    """The backend to `local`, `simulate` or `remote`; a server is asked whether it is there.

    Args:
        kind: Where traces run.
        host: The server's address; default `NDIF_HOST`, then nnsight's configuration.
        timeout: Seconds that a job may take, all its tries included.
        in_flight: How many jobs are under way at once.
        watch: Told what the server says of jobs.
        sandbox: Whether traces run as those of ordinary keys do: beside the model's process.
        insecure: Whether a key may go to another machine over plain http, and a result come from anywhere.
        most_bytes: What activations may come back from a server at once; None: any number.
        vllm: How a vLLM engine is opened; None where transformers' model runs.

    Raises:
        UserError: No server, or none that understands us.
    """
    if vllm is not None and kind != "local":
        raise UserError(f"--engine vllm runs here, or against --serve URL: leave --{kind} out")
    if vllm is not None:
        return Backend(kind, vllm=vllm)
    if kind != "remote":
        return LOCAL if kind == "local" else Backend(kind, sandbox=sandbox)
    from nnsight.schema.config import CONFIG

    from interventions.backends.ndif.client import Client, address_of
    from interventions.backends.ndif.server import preflight

    CONFIG.APP.REMOTE_LOGGING = False  # its spinner would stand in the way of our own progress
    address = address_of(host, insecure=insecure)
    preflight(address)
    client = Client(address, timeout, watch or Watch(), sandbox=sandbox, insecure=insecure)
    return Backend(kind, client, in_flight, sandbox, most_bytes)
