"""The engine: whatever is answered beside it, an answer is the one that `generate` gives it."""

import random
import threading

import pytest
import torch

from data import load_all
from interventions import generate, open_model
from interventions.model.prompt_format import encode
from interventions.steering.live.asked import Asked, Ended, Opened, Sampling, Token
from interventions.steering.live.engine import Engine, FullError
from interventions.steering.plans import Tools, plan_arm
from interventions.steering.texts import finished
from tests.made.tools import OWN_KINDS, arms_of, lowrank_of, methods_of, probe_of, vectors_of

STEPS = 12
WORDS = [
    "baseline", "fixed:category=weapons", "fixed:scope=prompt", "fixed:scope=all,strength=3", "fixed:scope=prompt-last,layer=1", "routed",
    "gated:benign=-6,harmful=4", "gated:scope=all,benign=2,harmful=-2", "gated:slope=2,benign=-3", "ablate:layers=all,scope=all", "logit-bias:strength=-4",
    "logit-bias:route=gated,strength=-3", "random:seed=3,route=gated", "fixed:operation=clamp,strength=2", "lowrank", *OWN_KINDS,
]  # fmt: skip


class Heard:
    """What the engine tells of a row, and when it is over."""

    def __init__(self):
        self.events, self.over = [], threading.Event()

    def __call__(self, event):
        self.events.append(event)
        if isinstance(event, Ended):
            self.over.set()

    @property
    def tokens(self):
        return [event.id for event in self.events if isinstance(event, Token)]


def asked_of(model, tools, arm, text, **more):
    plan = plan_arm(model, arm, tools, [{}])
    encoded = encode(model.tokenizer, [text])
    gates = tools.shipped(model, [plan], [{"prompt": text}])
    return Asked(encoded.ids[0], encoded.user[0], plan, gates, more.pop("steps", STEPS), **more)


@pytest.fixture
def engine_of():
    made = []

    def make(*given, **options):
        made.append(Engine(*given, **options))
        return made[-1]

    yield make
    for engine in made:
        engine.close()


def heard_of(engine, asked):
    told = [Heard() for _ in asked]
    engine.submit(list(zip(asked, told, strict=True)))
    for one in told:
        assert one.over.wait(120)
    return told


def test_answers_that_come_and_go_are_those_of_generate(tiny_tuned, prompts_file, tmp_path, engine_of):
    vectors = vectors_of(tiny_tuned)
    tools = Tools(vectors, probe_of(tiny_tuned), lowrank_of(tiny_tuned), {}, methods_of(tiny_tuned))
    prompts = load_all([str(prompts_file)]).head(10)
    arms = arms_of(WORDS)
    table = generate(tiny_tuned, prompts, tools, tmp_path / "g.parquet", arms=arms, max_new_tokens=STEPS)
    rows = table.to_dicts()
    random.Random(0).shuffle(rows)
    by_name = {arm.name: arm for arm in arms}
    asked = [
        asked_of(tiny_tuned, tools, by_name[row["arm"]], row["prompt"], projects=at % 7 == 0, top=2 if at % 5 == 0 else None)
        for at, row in enumerate(rows)
    ]  # fmt: skip
    engine = engine_of(tiny_tuned, vectors, rows=32, queue=len(rows))
    for row, one in zip(rows, heard_of(engine, asked), strict=True):
        told = finished(tiny_tuned, one.tokens, STEPS)
        where = (row["arm"], row["prompt"])
        assert (told["response"], told["control_token"]) == (row["response"], row["control_token"]), where
        assert one.events[-1].finish == row["finish"], where
        opened = one.events[0]
        assert isinstance(opened, Opened)
        assert opened.refusal == pytest.approx(row["refusal_probability"], abs=1e-4), where
        if row["gate"] is not None:
            assert opened.gate == pytest.approx(row["gate"], abs=1e-4), where
        if row["strength"] is not None:
            assert opened.strength == pytest.approx(row["strength"], abs=1e-4), where


def test_the_simulated_backend_gives_the_same(tiny_tuned, tiny_tuned_folder, engine_of):
    vectors = vectors_of(tiny_tuned)
    far = open_model(str(tiny_tuned_folder), remote="local")
    tools = Tools(vectors, probe_of(tiny_tuned))
    arms = arms_of(["baseline", "gated:benign=-6,harmful=4"])
    texts = ["how do i kill a python process", "tell me", "write a poem"]
    found = []
    for model in (tiny_tuned, far):
        asked = [asked_of(model, tools, arm, text, steps=6) for arm in arms for text in texts]
        found.append([one.tokens for one in heard_of(engine_of(model, vectors), asked)])
    assert found[0] == found[1]


def test_projections_are_those_of_plain_hooks(tiny_tuned, engine_of):
    vectors = vectors_of(tiny_tuned)
    arm = arms_of(["baseline"])[0]
    asked = asked_of(tiny_tuned, Tools(vectors), arm, "tell me a poem please", projects=True, steps=4)
    (one,) = heard_of(engine_of(tiny_tuned, vectors), [asked])
    ids = torch.tensor([[*asked.ids, *one.tokens]])
    kept = {}
    handles = [block.register_forward_hook(lambda _m, _i, out, at=at: kept.update({at: out[0] if isinstance(out, tuple) else out}))
               for at, block in enumerate(tiny_tuned.module.model.layers)]  # fmt: skip
    with torch.no_grad():
        tiny_tuned.module(input_ids=ids)
    for handle in handles:
        handle.remove()
    start = asked.user[0]
    told = [*one.events[0].projections, *(event.projections for event in one.events if isinstance(event, Token))]
    for layer in range(tiny_tuned.n_layers):
        for number, name in enumerate(vectors.categories):
            unit = vectors.at(layer, name) / vectors.at(layer, name).norm()
            along = (kept[layer][0] @ unit).tolist()
            prompt = [row[layer][number] for row in told[: len(asked.ids) - start]]
            made = [row[layer][number] for row in told[len(asked.ids) - start :]]
            assert prompt == pytest.approx(along[start : len(asked.ids)], abs=1e-3)
            assert made == pytest.approx(along[len(asked.ids) - 1 : len(asked.ids) - 1 + len(made)], abs=1e-3)


def test_draws_follow_their_seed_whoever_is_beside_them(tiny_tuned, engine_of):
    vectors = vectors_of(tiny_tuned)
    engine, arm = engine_of(tiny_tuned, vectors), arms_of(["baseline"])[0]
    tools = Tools(vectors)

    def drawn(seed, temperature=1.5, top_p=1.0):
        return asked_of(tiny_tuned, tools, arm, "tell me a poem", sampling=Sampling(temperature, top_p, seed))

    alone = heard_of(engine, [drawn(7)])[0].tokens
    beside = heard_of(engine, [drawn(seed) for seed in (3, 7, 5, 7)])
    assert beside[1].tokens == alone == beside[3].tokens
    assert len({tuple(one.tokens) for one in beside}) > 1
    greedy = heard_of(engine, [asked_of(tiny_tuned, tools, arm, "tell me a poem")])[0].tokens
    assert heard_of(engine, [drawn(7, top_p=1e-6)])[0].tokens == greedy


def test_the_queue_is_bounded_and_who_leaves_frees_a_place(tiny_tuned, engine_of):
    vectors, arm = vectors_of(tiny_tuned), arms_of(["baseline"])[0]
    engine = engine_of(tiny_tuned, vectors, rows=1, queue=2)
    long = [asked_of(tiny_tuned, Tools(vectors), arm, "tell me", steps=400) for _ in range(2)]
    rows = engine.submit([(long[0], Heard()), (long[1], Heard())])
    with pytest.raises(FullError):
        engine.submit([(long[0], Heard())] * 3)
    engine.drop(rows)
    (one,) = heard_of(engine, [asked_of(tiny_tuned, Tools(vectors), arm, "tell me", steps=2)])
    assert one.tokens
    assert engine.load == (0, 0)


def test_a_pass_that_fails_is_told_and_the_next_request_answered(tiny_tuned, engine_of, monkeypatch):
    vectors, arm = vectors_of(tiny_tuned), arms_of(["baseline"])[0]
    engine = engine_of(tiny_tuned, vectors)
    asked = asked_of(tiny_tuned, Tools(vectors), arm, "tell me", steps=3)
    with monkeypatch.context() as patch:
        patch.setattr(engine.decoder, "step", lambda: 1 / 0)
        assert heard_of(engine, [asked])[0].events[-1].error == "the model failed: ZeroDivisionError"
    assert heard_of(engine, [asked])[0].tokens
