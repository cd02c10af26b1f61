"""A simulation runs what a server would be sent, in this process."""

from dataclasses import replace

import nnsight
import polars as pl
import torch

from data import load_all
from interventions import open_model
from interventions.reading.extract import extract
from interventions.steering.generate import generate
from interventions.steering.plans import Tools
from tests.made.tools import arms_of, vectors_of
from tests.oracles import same_activations, same_answers


def test_a_simulation_is_local_and_takes_nothing_from_outside(tiny, tiny_folder, prompts_file, tmp_path):
    model = open_model(str(tiny_folder), remote="local")
    prompts = load_all([str(prompts_file)])
    for name, one in (("local", tiny), ("simulate", model)):
        extract(one, prompts, tmp_path / name, position="mean")
        tools = Tools(replace(vectors_of(tiny), metadata=vectors_of(one).metadata))
        generate(
            one,
            prompts,
            tools,
            tmp_path / f"{name}.parquet",
            arms=arms_of(["baseline", "fixed:category=weapons"]),
            max_new_tokens=3,
        )
    same_activations(tmp_path / "local", tmp_path / "simulate")
    same_answers(*(pl.read_parquet(tmp_path / f"{name}.parquet") for name in ("local", "simulate")))
    network, block, batch, outside = (
        model.nnsight,
        model.layers[1],
        {"input_ids": torch.ones(1, 3, dtype=torch.long)},
        [],
    )
    for turn in range(2):  # blocks of one file, with what a layout anew drops or moves
        with network.session(backend=model.backend.nnsight(network)):
            # a comment
            kept = nnsight.save([])

            for _ in range(2):
                # another
                with network.trace(batch) as tracer:
                    seen = block.output.sum()
                    tracer.stop()
                kept.append(seen)
                outside.append(seen)
        with network.session(backend=model.backend.nnsight(network)):
            other = nnsight.save([])
            with network.trace(batch) as tracer:
                other.append(block.output.mean())
                tracer.stop()
        assert len(kept) == 2 and kept[0] == kept[1] and len(other) == 1 and turn < 2
    assert outside == []
