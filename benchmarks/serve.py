"""Does the server answer as `generate` does, as fast, and as long as it is asked to?

    PYTHONPATH=. python benchmarks/serve.py soak [--requests 2000]
    PYTHONPATH=. python benchmarks/serve.py speed RUN [--repeats 5]

`soak`: a tiny random model; mixed lengths from 16 clients, a tenth of which hang up. `speed`: a run of the embedded model with vectors
and a probe; all sides measured in turn, medians. Exit 1 if an answer is not its arm's, or memory grew by more than 5 % from request 200 on.
"""

import argparse
import asyncio
import json
import random
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import polars as pl
import torch

from data import load_all
from interventions import SteeringVectors, generate, open_model
from interventions.gates.gate import FittedGate
from interventions.model.prompt_format import encode
from interventions.steering.arms import Arm, parse_arms
from interventions.steering.live.engine import Engine
from interventions.steering.plans import Tools
from serving.offer import Offer
from tests.made.models import CONTROL, make_tiny
from tests.made.prompts import mixed_prompts
from tests.serving.conftest import listening, serving

CLIENTS, HANGING, LENGTHS, SETTLED, GROWN = 16, 0.1, (4, 12, 40), 200, 1.05
WORDS = ["baseline", "fixed:strength=-0.3", "routed", "gated:strength=-0.3", "fixed:strength=0.2,scope=all",
         "ablate:layers=all,scope=all", "logit-bias", "prompt-only:text=Be brief."]  # fmt: skip
BATCH = 32


def body(arm: str, text: str, tokens: int, **more: Any) -> dict[str, Any]:
    """A request."""
    return {"model": arm, "messages": [{"role": "user", "content": text}], "max_tokens": tokens, **more}


def memory() -> float:
    """Resident MB of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6


async def streamed(client: httpx.AsyncClient, asked: dict[str, Any], *, hangs_up: bool = False) -> str:
    """The text of a streamed answer; nothing of one that is left after its first event."""
    text = ""
    async with client.stream("POST", "/v1/chat/completions", json={**asked, "stream": True}) as answer:
        async for line in answer.aiter_lines():
            if hangs_up:
                return ""
            if line.startswith("data: {"):
                text += json.loads(line[6:])["choices"][0]["delta"].get("content") or ""
    return text


async def answered(client: httpx.AsyncClient, asked: dict[str, Any]) -> dict[str, Any]:
    """A whole answer."""
    return (await client.post("/v1/chat/completions", json=asked)).raise_for_status().json()


def text_of(answer: dict[str, Any]) -> str:
    """Its text."""
    return answer["choices"][0]["message"]["content"]


def soak(requests: int) -> bool:
    """Many requests; whether all that must hold does."""
    folder = Path(tempfile.mkdtemp())
    model = open_model(str(make_tiny(folder / "model", CONTROL)))
    prompts = load_all([str(mixed_prompts(folder / "prompts.jsonl"))]).head(20)
    with serving(model, rows=BATCH) as (address, offer, engine):
        expected = {
            (row["arm"], row["prompt"], length): row["response"]
            for length in LENGTHS
            for row in generate(
                model, prompts, offer.tools, folder / f"{length}.parquet", arms=offer.arms, max_new_tokens=length
            ).to_dicts()
        }
        drawn, wrong, sizes = random.Random(0), 0, []
        left = iter([(*drawn.choice(list(expected)), drawn.random(), drawn.random() < 0.5) for _ in range(requests)])

        async def ask() -> None:
            nonlocal wrong
            async with httpx.AsyncClient(base_url=address, timeout=120) as client:
                for arm, text, length, share, streams in left:
                    if share < HANGING:
                        async with httpx.AsyncClient(base_url=address, timeout=120) as short:
                            await streamed(short, body(arm, text, 400), hangs_up=True)
                    else:
                        asked = body(arm, text, length)
                        got = await streamed(client, asked) if streams else text_of(await answered(client, asked))
                        wrong += got != expected[arm, text, length]
                    sizes.append(memory())

        async def all_clients() -> None:
            await asyncio.gather(*(ask() for _ in range(CLIENTS)))

        began = time.perf_counter()
        asyncio.run(all_clients())
        took = time.perf_counter() - began
        time.sleep(2)
        grown = sizes[-1] / sizes[min(SETTLED, requests) - 1]
        print(
            f"{requests} requests over {len({arm for arm, _, _ in expected})} arms in {took:.0f} s: {wrong} wrong; memory {sizes[-1]:.0f} MB, "
            f"{grown - 1:+.1%} from request {SETTLED} on; {sum(engine.load)} answers left under way"
        )
        return not wrong and grown <= GROWN and not any(engine.load)


class Speed:
    """A server over the embedded model, and what it is compared with."""

    def __init__(self, run: Path, address: str, offer: Offer) -> None:
        """Of a run."""
        self.run, self.address, self.offer, self.model = run, address, offer, offer.model
        every = load_all(["embedded"]).filter(pl.col("split") == "test")
        self.prompts = every.sample(BATCH, seed=1)

    def equal(self) -> bool:
        """As many requests at once as make a batch, over all arms."""
        arms = self.offer.arms
        made = self._generated(self.prompts.head(BATCH // len(arms)), arms, 24)
        rows = made.sample(fraction=1, shuffle=True, seed=2).to_dicts()
        got = asyncio.run(self._at_once([body(row["arm"], row["prompt"], 24) for row in rows]))
        same = [text_of(answer) == row["response"] for answer, row in zip(got, rows, strict=True)]
        print(f"{sum(same)} of {len(same)} answers over {len(arms)} arms equal generate's", flush=True)
        return all(same)

    def first_token(self, repeats: int) -> None:
        """Time to a first token over that of a bare forward pass beside it, by prompt and arm."""
        texts = self.prompts["prompt"].to_list()
        arms = [arm.name for arm in self.offer.arms[:4]]
        for text in (texts[0], " ".join(texts[:6])):
            ids = torch.tensor(encode(self.model.tokenizer, [text]).ids)
            rounds = [(self._bare(ids), [self._first(arm, text) for arm in arms]) for _ in range(repeats + 1)][1:]
            bare = statistics.median(one for one, _ in rounds)
            for at, arm in enumerate(arms):
                first = statistics.median(some[at] for _, some in rounds)
                ratio = statistics.median(some[at] / one for one, some in rounds)
                print(f"first token, {ids.shape[1]} tokens, {arm}: {first * 1e3:.0f} ms, bare pass {bare * 1e3:.0f} ms, ratio {ratio:.2f}", flush=True)  # fmt: skip

    def throughput(self, repeats: int) -> None:
        """Tokens a second of as many clients as make a batch, over `generate`'s."""
        (arm,) = parse_arms(["fixed:strength=-0.3"], self.offer.default)
        asked = [body(arm.name, text, 32) for text in self.prompts["prompt"]]
        mine, theirs = [], []
        for _ in range(repeats):
            began = time.perf_counter()
            made = int(self._generated(self.prompts, [arm], 32)["new_tokens"].sum())
            theirs.append(made / (time.perf_counter() - began))
            began = time.perf_counter()
            got = asyncio.run(self._at_once(asked))
            mine.append(sum(one["usage"]["completion_tokens"] for one in got) / (time.perf_counter() - began))
            print(f"{BATCH} clients: {mine[-1]:.1f} tokens/s, generate {theirs[-1]:.1f}", flush=True)
        print(f"ratio {statistics.median(mine) / statistics.median(theirs):.2f}")

    def _generated(self, prompts: pl.DataFrame, arms: Sequence[Arm], tokens: int) -> pl.DataFrame:
        place = Path(tempfile.mkdtemp()) / "generations.parquet"
        return generate(self.model, prompts, self.offer.tools, place, arms=arms, max_new_tokens=tokens)

    async def _at_once(self, asked: list[dict[str, Any]]) -> list[dict[str, Any]]:
        async with httpx.AsyncClient(base_url=self.address, timeout=600) as client:
            return await asyncio.gather(*(answered(client, one) for one in asked))

    def _bare(self, ids: torch.Tensor) -> float:
        began = time.perf_counter()
        with torch.no_grad():
            self.model.module(input_ids=ids)
        return time.perf_counter() - began

    def _first(self, arm: str, text: str) -> float:
        began = time.perf_counter()
        asked = {**body(arm, text, 1), "stream": True}
        with httpx.stream("POST", f"{self.address}/v1/chat/completions", json=asked, timeout=600) as answer:
            next(line for line in answer.iter_lines() if line.startswith("data"))
        return time.perf_counter() - began


def speed(run: Path, repeats: int) -> bool:
    """All of a run's speed; whether its answers are the same."""
    model = open_model("refusal-smollm2")
    vectors = SteeringVectors.load(run / "vectors.safetensors")
    tools = Tools(vectors, FittedGate.load(run / "probe.safetensors"))
    default = Arm("fixed", "fixed", model.default_layer())
    offer = Offer(model, tools, parse_arms(WORDS, default), default, 512, 32)
    with listening(offer, Engine(model, vectors, rows=BATCH)) as address:
        of = Speed(run, address, offer)
        of.first_token(4 * repeats)
        same = of.equal()
        of.throughput(repeats)
        return same


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    of = parser.add_subparsers(dest="what", required=True)
    of.add_parser("soak").add_argument("--requests", type=int, default=2000)
    fast = of.add_parser("speed")
    fast.add_argument("run", type=Path)
    fast.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    raise SystemExit(not (soak(args.requests) if args.what == "soak" else speed(args.run, args.repeats)))


if __name__ == "__main__":
    main()
