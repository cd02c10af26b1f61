"""The endpoint on a real socket: OpenAI's own client, odd requests, clients that leave, and answers that are `generate`'s."""

import json
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import pytest

from data import load_all
from interventions import generate
from serving.guard import Rules


def client_of(address, **options):
    return openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0, timeout=60, **options)


def ask(client, model, text, **more):
    return client.chat.completions.create(model=model, messages=[{"role": "user", "content": text}], **more)


def test_arms_are_models(served):
    address, offer, _ = served
    client = client_of(address)
    assert [model.id for model in client.models.list()] == offer.names
    assert client.models.retrieve("routed").id == "routed"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-4")
    with pytest.raises(openai.NotFoundError, match="no model 'gpt-4'; there are baseline"):
        ask(client, "gpt-4", "tell me")


def test_many_at_once_get_what_generate_gives_each_arm(served, prompts_file, tmp_path):
    address, offer, _ = served
    prompts = load_all([str(prompts_file)]).head(6)
    table = generate(offer.model, prompts, offer.tools, tmp_path / "g.parquet", arms=offer.arms, max_new_tokens=10)
    rows = table.to_dicts()
    random.Random(0).shuffle(rows)
    client = client_of(address)

    def one(row):
        if hash(row["id"]) % 2:
            return ask(client, row["arm"], row["prompt"], max_tokens=10).choices[0].message.content
        parts = ask(client, row["arm"], row["prompt"], max_tokens=10, stream=True)
        return "".join(part.choices[0].delta.content or "" for part in parts if part.choices)

    with ThreadPoolExecutor(32) as pool:
        told = list(pool.map(one, rows))
    assert told == [row["response"] for row in rows]


def test_a_run_without_a_probe_answers(serve_tiny):
    with serve_tiny(words=["baseline", "fixed:strength=-5"], probe=False) as (address, _, _):
        client = client_of(address)
        assert all(
            ask(client, arm, "tell me", max_tokens=3).choices[0].message.content for arm in ("baseline", "fixed")
        )
        with pytest.raises(openai.BadRequestError, match="this run has no gate 'probe'; there are: none"):
            ask(client, "fixed", "tell me", max_tokens=3, extra_body={"gate": "probe"})


def test_an_answer_says_what_was_done_to_it(served, prompts_file, tmp_path):
    address, offer, _ = served
    prompts = load_all([str(prompts_file)]).head(6)
    gated = [arm for arm in offer.arms if arm.is_gated]
    rows = generate(offer.model, prompts, offer.tools, tmp_path / "g.parquet", arms=gated, max_new_tokens=4).to_dicts()
    for row in rows:
        whole = ask(client_of(address), row["arm"], row["prompt"], max_tokens=4)
        steering = whole.choices[0].model_extra["steering"]
        assert steering["vector"] == row["vector"]
        assert steering["strength"] == pytest.approx(row["strength"])
        assert steering["gate"]["score"] == pytest.approx(row["gate"], abs=1e-4)
        assert steering["gate"]["harmful"] == (row["strength"] > 0)
        assert steering["control_token"] == row["control_token"]
        assert steering["refusal_probability"] == pytest.approx(row["refusal_probability"], abs=1e-4)
        assert whole.usage.completion_tokens == row["new_tokens"]
        assert whole.choices[0].finish_reason == row["finish"]


def test_a_request_may_say_its_setting_itself(served):
    address, _, _ = served
    client = client_of(address)
    by_arm = ask(client, "fixed:category=weapons,strength=-5", "tell me a poem", max_tokens=8)
    listed = ask(client, "fixed:strength=-5", "tell me a poem", max_tokens=8, extra_body={"category": "weapons"})
    assert by_arm.choices[0].message.content == listed.choices[0].message.content
    by_word = ask(client, "any", "tell me a poem", max_tokens=8, extra_body={"arm": "fixed:category=weapons", "strength": -5, "layer": 2})  # fmt: skip
    assert by_word.choices[0].message.content == by_arm.choices[0].message.content
    steering = ask(client, "fixed:strength=-5", "tell me", max_tokens=2, extra_body={"strength": 2.5, "scope": "prompt-last", "layer": 1}).choices[0].model_extra["steering"]  # fmt: skip
    assert (steering["strength"], steering["scope"], steering["layer"]) == (2.5, "prompt-last", 1)


def test_completions_take_texts_as_they_are(served):
    address, _offer, _ = served
    client = client_of(address)
    chat = ask(client, "baseline", "tell me", max_tokens=6)
    raw = client.completions.create(model="baseline", prompt=["<bos><user>tell me<bot>", "<bos><user>write a poem<bot>"], max_tokens=6, logprobs=2)  # fmt: skip
    assert raw.choices[0].text == chat.choices[0].message.content
    assert len(raw.choices) == 2
    told = raw.choices[0].logprobs
    assert told and told.tokens and told.token_logprobs and len(told.tokens) == len(told.token_logprobs)


def test_log_probabilities_are_the_model_s(served):
    import torch

    address, offer, _ = served
    told = ask(client_of(address), "baseline", "tell me a poem", max_tokens=1, logprobs=True, top_logprobs=3)
    ids = offer.model.tokenizer("<bos><user>tell me a poem<bot>", add_special_tokens=False, return_tensors="pt")["input_ids"]  # fmt: skip
    with torch.no_grad():
        shares = offer.model.module(input_ids=ids).logits[0, -1].log_softmax(-1)
    entry = told.choices[0].logprobs.content[0]
    best = shares.topk(3)
    assert entry.logprob == pytest.approx(float(best.values[0]), abs=1e-4)
    assert [one.logprob for one in entry.top_logprobs] == pytest.approx(best.values.tolist(), abs=1e-4)


def test_n_seed_stop_and_usage(served):
    address, _, _ = served
    client = client_of(address)
    told = ask(client, "baseline", "tell me a poem", max_tokens=12, n=4, temperature=1.5, seed=3)
    again = ask(client, "baseline", "tell me a poem", max_tokens=12, n=4, temperature=1.5, seed=3)
    texts = [choice.message.content for choice in told.choices]
    assert texts == [choice.message.content for choice in again.choices]
    assert len(set(texts)) > 1
    assert told.usage.total_tokens == told.usage.prompt_tokens + told.usage.completion_tokens
    whole = ask(client, "baseline", "tell me", max_tokens=12).choices[0].message.content
    stop = next(word for word in whole.split() if word != whole.split()[0])
    cut = ask(client, "baseline", "tell me", max_tokens=12, stop=[stop]).choices[0]
    assert (cut.message.content, cut.finish_reason) == (whole[: whole.find(stop)], "stop")
    streamed = [*ask(client, "baseline", "tell me", max_tokens=12, stop=stop, stream=True, stream_options={"include_usage": True})]  # fmt: skip
    assert "".join(part.choices[0].delta.content or "" for part in streamed if part.choices) == cut.message.content
    assert streamed[-1].usage.completion_tokens > 0


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ("{", None), ("[]", None), ("[" * 100_000, None), ('{"model": "baseline"}', "messages"),
        ({"messages": []}, "messages"), ({"max_tokens": 0}, "max_tokens"), ({"max_tokens": 10_000}, "max_tokens"), ({"temperature": -1}, "temperature"),
        ('{"model": "baseline", "temperature": NaN, "messages": [{"role": "user", "content": "a"}]}', None), ({"top_p": 0}, "top_p"), ({"n": 99}, "n"),
        ({"frequency_penalty": 1}, "frequency_penalty"), ({"tools": [{}]}, "tools"), ({"tempature": 1}, "tempature"), ({"strength": 1e999}, None),
        ({"layer": 99}, "layer"), ({"category": "nobody's"}, "category"), ({"gate": "ridge"}, "gate"), ({"arm": "oracle"}, "arm"),
        ({"arm": "fixed:strength=x"}, "arm"), ({"arm": "gated:gate=perfect"}, "arm"), ({"messages": [{"role": "user", "content": ""}]}, "messages"),
        ({"messages": [{"role": "user", "content": "\ue010[]\ue011hi"}]}, "messages"), ({"messages": [{"role": "robot", "content": "a"}]}, "messages"),
        ({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]}, "messages"), ({"messages": [7]}, "messages.0"),
    ],
)  # fmt: skip
def test_what_can_t_be_answered_is_refused_in_openai_s_shape(served, body, param):
    address, _, engine = served
    if isinstance(body, dict):
        body = json.dumps({"model": "baseline", "messages": [{"role": "user", "content": "tell me"}]} | body)
    told = httpx.post(f"{address}/v1/chat/completions", content=body)
    assert told.status_code == 400, told.text
    error = told.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert error["message"]
    if param is not None:
        assert error["param"] == param
    assert engine.load[1] == 0


def test_what_is_not_there_is_said_so(served):
    address, _, _ = served
    assert httpx.get(f"{address}/v1/nothing").json()["error"]["type"] == "not_found_error"
    assert httpx.get(f"{address}/v1/chat/completions").status_code == 405
    assert httpx.get(f"{address}/docs").status_code == 404


def test_a_full_queue_answers_429_and_works_on(serve_tiny):
    with serve_tiny(rows=1, queue=1) as (address, _, _):
        client = client_of(address)

        def one(_):
            try:
                return ask(client, "baseline", "tell me", max_tokens=80).choices[0].message.content is not None
            except openai.RateLimitError as error:
                assert error.response.headers["retry-after"] == "1"
                return False

        with ThreadPoolExecutor(8) as pool:
            told = list(pool.map(one, range(8)))
        assert True in told
        assert False in told
        assert ask(client, "baseline", "tell me", max_tokens=2).usage.completion_tokens


def left(engine, seconds=20):
    end = time.monotonic() + seconds
    while engine.load != (0, 0) and time.monotonic() < end:
        time.sleep(0.02)
    return engine.load


@pytest.mark.parametrize("stream", [True, False])
def test_who_hangs_up_frees_the_place(serve_tiny, stream):
    with serve_tiny(rows=2, queue=4) as (address, _, engine):
        body = {
            "model": "baseline",
            "messages": [{"role": "user", "content": "tell me"}],
            "max_tokens": 512,
            "stream": stream,
        }
        for _ in range(3):
            if stream:
                with httpx.stream("POST", f"{address}/v1/chat/completions", json=body, timeout=60) as told:
                    next(told.iter_lines())
            else:
                with pytest.raises(httpx.ReadTimeout):
                    httpx.post(f"{address}/v1/chat/completions", json=body, timeout=0.05)
            assert left(engine, 5) == (0, 0)


def test_who_reads_slowly_holds_up_nobody(serve_tiny):
    with serve_tiny(rows=1, queue=4) as (address, _, engine):
        body = {
            "model": "baseline",
            "messages": [{"role": "user", "content": "tell me"}],
            "max_tokens": 64,
            "stream": True,
        }
        with httpx.stream("POST", f"{address}/v1/chat/completions", json=body, timeout=60):
            told = ask(client_of(address), "baseline", "tell me", max_tokens=2)  # while nothing of the other is read
            assert told.usage.completion_tokens == 2
            assert left(engine) == (0, 0)


@pytest.mark.parametrize(("error", "status"), [(MemoryError("no room"), 503), (ValueError("down and out"), 500)])
def test_what_another_try_may_not_meet_is_told_apart_from_what_fails(serve_tiny, monkeypatch, error, status):
    body = {"model": "baseline", "messages": [{"role": "user", "content": "tell me"}], "max_tokens": 4}
    with serve_tiny() as (address, _, engine):

        def fails():
            raise error

        with monkeypatch.context() as patch:
            patch.setattr(engine.decoder, "step", fails)
            assert httpx.post(f"{address}/v1/chat/completions", json=body, timeout=60).status_code == status
        assert httpx.post(f"{address}/v1/chat/completions", json=body, timeout=60).status_code == 200


def test_a_token_is_asked_for_everywhere_but_at_the_page(serve_tiny):
    with serve_tiny(rules=Rules(token="0123456789abcdef")) as (address, _, _):
        assert httpx.get(f"{address}/").status_code == 200
        for path in ("/v1/models", "/v1/run", "/v1/models/baseline"):
            assert httpx.get(address + path).status_code == 401
        with pytest.raises(openai.AuthenticationError):
            ask(client_of(address), "baseline", "tell me")
        right = openai.OpenAI(base_url=f"{address}/v1", api_key="0123456789abcdef")
        assert ask(right, "baseline", "tell me", max_tokens=2).choices


def test_what_is_under_way_when_the_server_ends_is_told(serve_tiny):
    told = []
    with serve_tiny() as (address, _, engine):

        def long():
            try:
                told.append(ask(client_of(address), "baseline", "tell me", max_tokens=512, n=16))
            except openai.OpenAIError as error:
                told.append(error)

        thread = threading.Thread(target=long)
        thread.start()
        while not engine.load[0]:
            time.sleep(0.005)
    thread.join(30)
    assert told
