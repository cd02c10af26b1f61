"""`extract`: what it shows of the prompts before it reads them."""

import json

from data import load_all


def test_the_first_prompt_is_shown_as_the_model_reads_it(run, tiny_tuned, tiny_tuned_folder, prompts_file, tmp_path):
    words = [
        "--run",
        tmp_path / "run",
        "--model",
        tiny_tuned_folder,
        "extract",
        "--data",
        prompts_file,
        "--show-prompt",
    ]
    prompt = load_all([str(prompts_file)])["prompt"][0]
    turn, tokenizer = [{"role": "user", "content": prompt}], tiny_tuned.tokenizer
    ids = tokenizer.apply_chat_template(turn, add_generation_prompt=True, return_dict=True)["input_ids"]
    tokens = tokenizer.convert_ids_to_tokens(ids)  # words
    code, out, err = run(*words)
    assert (
        code == 0
        and " ".join(map(repr, tokens)) in err
        and f"its {len(ids)} tokens" in err
        and "the model reads" not in out
    )
    code, out, _ = run(*words, "--json")
    told = json.loads(out)
    assert code == 0 and told["tokens"] == tokens == told["rendered"].split()
    assert tokens[slice(*told["user"])] == prompt.split()
