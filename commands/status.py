"""`status`: is NDIF there, what runs on it, do versions fit; and what this machine has."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from commands.framework.app import Session, command
from commands.framework.options import JOBS, MANY, NEW_TOKENS, PROMPT_TOKENS
from commands.framework.output import Summary, as_text
from commands.framework.settings import Settings
from data.contract import QUANTISED, TUNED_MODEL
from data.errors import UserError

if TYPE_CHECKING:
    from interventions.backends.ndif.client import Client

JOB_SECONDS = 5.0  # to ask for one job's state


@command(JOBS, MANY, PROMPT_TOKENS, NEW_TOKENS, writes=False)
def status(_session: Session, s: Settings) -> Summary:
    """Is NDIF reachable, which models are up, do versions fit; and what is here, with --jobs also of the run under way?

    With --model also what fits here of it, from its configuration alone: weights in --dtype or --quantize, cache, how many
    rows have room at once; and with --prompts how long these take to answer.

    Asks the configured NDIF (--host, NDIF_HOST, nnsight's configuration) with a short timeout. A server that does not
    answer is a line in the answer; with --remote it is an error.
    """
    from interventions.backends.ndif.server import PREFLIGHT_SECONDS

    there = ask_server(s.get("host"), min(PREFLIGHT_SECONDS, s.get("timeout")), s.get("insecure"))
    if s.get("where") == "remote" and there["reason"]:
        raise UserError(there["reason"])
    here = local()
    jobs = jobs_of(s.run, s.get("host"), s.get("insecure"), there["reachable"]) if s.get("jobs") else None
    asked = s.given("model") or s.given("prompts")
    model = fitting(s) if asked else None
    if s.get("as_json"):
        more = {"jobs": jobs, "model": model}
        return {"ndif": there, "local": here, **{name: told for name, told in more.items() if told is not None}}
    _show(there, here)
    if model is not None:
        _show_model(model)
    if jobs is not None:
        _show_jobs(s, jobs)
    return {}


def jobs_of(run: Path, host: str | None, insecure: bool, reachable: bool) -> list[Summary]:
    """The jobs that the journals of a run directory hold open: `artefact`, `batches`, `id`, `sent` and `state`.

    The state is the server's word, `unknown` where it says nothing of a job, and `elsewhere` for one of another server.
    """
    from datetime import UTC, datetime

    from data.store.journal import batches_of, jobs_under_way
    from interventions.backends.ndif.client import Client, address_of
    from interventions.backends.pool import ranges

    client, found = Client(address_of(host, insecure=insecure), JOB_SECONDS), []
    for path in sorted(run.rglob(".*.journal")):
        name = str(path.with_name(path.name[1:]).with_suffix("").relative_to(run))
        for job, noted in jobs_under_way(path).items():
            ours = noted.get("server") == client.mark
            state = "failed" if noted.get("failed") else "elsewhere" if not ours else "unknown"
            if ours and reachable and not noted.get("failed"):
                state = asked_state(client, str(noted["id"]))
            sent = datetime.fromtimestamp(float(noted.get("sent", 0)), UTC).isoformat(timespec="seconds")
            found.append(
                {"artefact": name, "batches": ranges(batches_of(job)), "id": noted["id"], "sent": sent, "state": state}
            )
    return found


def asked_state(client: "Client", job: str) -> str:
    """The server's word for a job's state."""
    from urllib.parse import quote

    from interventions.backends.ndif.client import LateError, PassingError, TooLongError, cleaned

    try:
        told = client.exchange("GET", f"/response/{quote(job, safe='')}", JOB_SECONDS).json()
        return cleaned(told["status"])[:40]
    except (LateError, PassingError, TooLongError, ValueError, RecursionError, KeyError, TypeError):
        return "unknown"


def ask_server(host: str | None, seconds: float, insecure: bool) -> Summary:
    """What can be known of a server: `host`, `reachable`, `reason` (why it can't be used), `key`, `models`, `versions`."""
    from interventions.backends.ndif.client import address_of, shown
    from interventions.backends.ndif.server import RUNNING, deployments, get, key_words, pick, ping, version_table

    address = address_of(host, insecure=insecure)
    found: Summary = {"host": shown(address), "reachable": False, "reason": None, "key": None,
                             "default": None, "models": [], "versions": []}  # fmt: skip
    try:
        ping(address, seconds)
        found["reachable"] = True
        found["key"] = key_words(address, seconds)
        get(address, "/connected", seconds)
        models = deployments(address)
        llama = pick(models)
        found["default"] = llama.name if llama is not None else None
        found["models"] = [
            {"model": one.name, "state": one.state, "level": one.level, "dtype": one.dtype, "llama": one.is_llama,
             "parameters": one.parameters}
            for one in models if one.state == RUNNING or one.level != "COLD"
        ]  # fmt: skip
        found["versions"] = version_table(address)
    except UserError as error:
        found["reason"] = str(error)
    return found


def local() -> Summary:
    """Device, memory and PyTorch of this machine; bytes."""
    import os

    import torch

    page = os.sysconf("SC_PAGE_SIZE")
    found: Summary = {
        "device": "cpu",
        "name": f"{os.cpu_count()} cores",
        "memory": page * os.sysconf("SC_PHYS_PAGES"),
        "torch": torch.__version__,
    }
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        found |= {"device": "cuda", "name": torch.cuda.get_device_name(), "device_memory": total, "device_free": free}
    elif torch.backends.mps.is_available():
        found |= {"device": "mps", "name": "Apple GPU"}
    return found


def fitting(s: Settings) -> Summary:
    """What a model takes that is named and not loaded, whether it fits here, and how long a job takes; bytes and seconds."""

    from interventions.model.opening import chosen_device, skeleton, type_of
    from interventions.reading.estimate import free_memory, job, measured, rows_that_decode, rows_that_fit, sizes_of

    name = s.get("model") or TUNED_MODEL
    device, module = chosen_device(s.get("device")), skeleton(name)
    dtype = type_of(s.get("dtype"), device, module.config)
    sizes, free = sizes_of(module, dtype, s.get("quantize")), free_memory(device)
    row = s.get("prompt_tokens") + s.get("max_new_tokens")
    found: Summary = {
        "model": name, "dtype": str(dtype).removeprefix("torch."), "quantize": s.get("quantize"), "device": device, "free": free,
        "parameters": sizes.parameters, "weights": sizes.weights, "cache_a_token": sizes.cache, "row_tokens": row,
        "rows": rows_that_fit(sizes, free, row), "job": None,
    }  # fmt: skip
    if s.get("prompts") and found["rows"]:
        rates = measured(device, dtype)
        rows = rows_that_decode(sizes, module.config.get_text_config(), device, free, row, s.get("batch_tokens"))
        told = job(sizes, rates, rows, s.get("prompts"), s.get("prompt_tokens"), s.get("max_new_tokens"))
        found["job"] = {"prompts": s.get("prompts"), "prompt_tokens": s.get("prompt_tokens"),
                        "max_new_tokens": s.get("max_new_tokens"), "rows": told.rows, "prefill": told.prefill,
                        "decode": told.decode, "products": rates.products, "copied": rates.copied}  # fmt: skip
    return found


def _show_model(told: Summary) -> None:
    from commands.framework.output import span

    held = told["quantize"] if told["quantize"] in QUANTISED else told["dtype"]
    click.echo(f"{told['model']}: {told['parameters']:,} parameters, {_bytes(told['weights'])} in {held}; a token leaves "
               f"{_bytes(told['cache_a_token'])} in the cache")  # fmt: skip
    if not told["rows"]:
        click.echo(f"does not fit into the {_bytes(told['free'])} that are free on {told['device']}: --quantize 4bit takes less, "
                   "--device-map auto puts the rest elsewhere")  # fmt: skip
        return
    click.echo(f"fits into the {_bytes(told['free'])} that are free on {told['device']}, beside a batch of at most "
               f"{told['rows']:,} rows of {told['row_tokens']:,} tokens")  # fmt: skip
    if (job := told["job"]) is not None:
        click.echo(f"{job['prompts']:,} prompts of {job['prompt_tokens']:,} tokens, {job['max_new_tokens']:,} new ones each, one arm: "
                   f"about {span(job['prefill'] + job['decode'])} ({span(job['prefill'])} of it reading), {job['rows']:,} rows at once, by "
                   f"{job['products'] / 1e9:,.3g} GFLOP/s and {job['copied'] / 1e9:,.3g} GB/s as measured here in {told['dtype']}")  # fmt: skip


def _bytes(many: float) -> str:
    """Decimal, as disks and models are measured."""
    unit, name = next((one for one in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")) if many >= one[0]), (1, "bytes"))
    return f"{many / unit:.3g} {name}"


def _show_jobs(s: Settings, jobs: list[Summary]) -> None:
    import polars as pl

    if jobs:
        click.echo(as_text(pl.DataFrame(jobs)))
        click.echo("the command that began them collects what is done; NDIF lets nobody but its operators cancel a job")
    else:
        click.echo(f"no job of {s.run} is under way")


def _show(there: Summary, here: Summary) -> None:
    import polars as pl

    if there["reason"]:
        click.echo(f"NDIF: {there['reason']}")
    if there["reachable"]:
        click.echo(f"NDIF: reachable at {there['host']}; key: {there['key']}")
    if there["models"]:
        click.echo(as_text(pl.DataFrame(there["models"])))
    elif not there["reason"]:
        click.echo("no model is up there: the first request for one deploys it")
    if there["versions"]:
        rows = [{**row, "fits": "yes" if row["fits"] else "NO"} for row in there["versions"]]
        click.echo(as_text(pl.DataFrame(rows)))
    memory = f"{here['memory'] / 2**30:.0f} GB of memory"
    card = (
        f", {here['device_free'] / 2**30:.0f} of {here['device_memory'] / 2**30:.0f} GB of its own free"
        if "device_free" in here
        else ""
    )
    click.echo(f"here: {here['device']} ({here['name']}){card}, {memory}, torch {here['torch']}")
