"""The report: what it says, what it leaves out, and that no text of a model or a file becomes markup."""

import csv
import itertools
import json
import re
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from data.errors import UserError
from data.store.rundir import record
from reports.page import charts, labels, markup
from reports.page import wording as say
from reports.page.assets import write_assets, write_table
from reports.page.blocks import Code, Prose, Table
from reports.page.compare import write_comparison
from reports.page.markup import as_json, escape
from reports.page.names import alone, named, unsaid
from reports.page.run import open_run, read_activations
from reports.page.sections import (
    activations,
    answer,
    costs,
    diffing,
    ordered,
    paper,
    probe,
    provenance,
    rates,
    samples,
    sweep,
    vectors,
)
from reports.page.sections.selective import category, gates
from reports.page.write import write_report
from tests.made.runs import ARMS, CATEGORIES, synthetic_run


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return synthetic_run(tmp_path_factory.mktemp("run") / "whole", 120)


@pytest.fixture(scope="module")
def run(folder):
    return open_run(folder)


def there(found: Any) -> Any:
    assert found is not None
    return found


def words(section: Any) -> str:
    return " ".join(block.text for block in there(section).blocks if isinstance(block, Prose))


# What the page says.


def test_every_artefact_has_its_section(folder, tmp_path):
    titles = write_report(folder, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert len(titles) == len(set(titles)) == len(ordered())
    assert page.count("<section") == len(titles)
    named = re.findall(r'<[^>]* id="([^"]+)"', page)
    assert len(named) == len(set(named)) > len(titles)  # a chart is drawn into whatever has its name


@pytest.mark.parametrize(
    "name",
    [
        "traces",
        "sweep",
        "diff",
        "effects",
        "capability",
        "probe_roc",
        "summary",
        "generations",
        "category",
        "gate_quality",
        "compared",
    ],
)
def test_a_section_stands_only_where_its_artefact_is(run, name):
    without = type(run)(
        run.folder, run.records, {key: table for key, table in run.tables.items() if key != name}, run.vectors
    )
    before, after = ({s.title for make in ordered() if (s := make(some))} for some in (run, without))
    assert after < before and len(before - after) <= 3


def test_the_page_says_what_share_of_a_gates_way_words_alone_get(run):
    said = words(gates.section(run))
    assert (
        "ridge takes over-refusal from 30.0\u00a0% to 10.0\u00a0%" in said
        and "gets to 20.0\u00a0%, 50\u00a0% of the way" in said
    )


def test_the_page_says_whether_it_matters_whose_vector_is_added(run):
    section = there(category.section(run))
    said = words(section)
    assert "It is not shown to matter whose vector is added" in said and "random 1, towards: its KL is 0.2 nats" in said
    table = there(section.tables()[0].shown)
    assert table.columns == ["vector", "KL", *sorted(CATEGORIES), "(all)"] and table.height == 9


def test_an_empty_run_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"nothing to report in .*: run `python cli\.py"):
        write_report(tmp_path, tmp_path / "report.html")
    assert not list(tmp_path.iterdir())


def test_a_file_that_can_not_be_read_is_named_and_the_rest_is_shown(folder, tmp_path):
    for path in folder.iterdir():
        if path.stem not in ("sweep", "diff"):
            (tmp_path / path.name).symlink_to(path)
    (tmp_path / "sweep.parquet").write_bytes(b"PAR1 and then nothing")
    pl.DataFrame({"category": ["a"]}).write_parquet(tmp_path / "diff.parquet")
    titles = write_report(tmp_path, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "sweep.parquet:" in page and "diff.parquet: no column" in page and "What steering did" in titles
    assert "Sweep of layers and strengths" not in titles


def row(label, arm, n, refused, both, arm_only, baseline_only, broken=0):
    from reports.statistics.summary import mcnemar, newcombe

    paired = both + arm_only + baseline_only
    delta = newcombe(both, arm_only, baseline_only, n - paired) if arm != "baseline" else (None, None, None)
    low, high = 0.0, 1.0
    return {
        "dataset": "(pooled)", "label": label, "arm": arm, "kind": arm, "scorer": "phrases", "n": n, "n_failed": 0, "n_overlap": 0,
        "refused": refused, "rate": refused / n, "low": low, "high": high, "partial": 0, "broken": broken,
        "answered": n - refused - broken, "n_paired": n if arm != "baseline" else 0, "delta": delta[0], "delta_low": delta[1],
        "delta_high": delta[2], "p": mcnemar(arm_only, baseline_only) if arm != "baseline" else None, "p_holm": None,
    }  # fmt: skip


def told(tmp_path, *rows):
    from data.store.tables import SUMMARY

    columns = [name for name in SUMMARY if name in rows[0]]
    pl.DataFrame(list(rows), schema={name: SUMMARY[name] for name in columns}).write_parquet(
        tmp_path / "summary.parquet"
    )
    run = open_run(tmp_path)
    pooled = answer.pooled_rows(run)
    assert pooled is not None
    texts = [answer.sentence(pooled, "fixed", "fixed"), answer.footing(run, pooled, "fixed", run.arms())]
    texts += answer.warnings(pooled, run.named())
    sentence, footing, *warnings = [text.replace("\u00a0", " ") for text in texts]
    return sentence, footing, warnings


def test_the_answer_states_rates_differences_and_intervals(tmp_path):
    sentence, footing, warnings = told(
        tmp_path, row("benign", "baseline", 200, 60, 0, 0, 0), row("benign", "fixed", 200, 20, 18, 2, 42),
        row("harmful", "baseline", 100, 90, 0, 0, 0), row("harmful", "fixed", 100, 91, 88, 3, 2),
    )  # fmt: skip
    assert sentence.startswith(
        "With fixed, over-refusal falls from 30.0 % to 10.0 % of 200 benign prompts (−20.0 points, 95 % interval −26"
    )
    assert "; no change of refusal is shown: from 90.0 % to 91.0 % of 100 harmful prompts (+1.0 points" in sentence
    assert sentence.count(". ") == 0 and sentence[-1] == "."  # one sentence
    assert footing == "None of its answers is broken. Scored by phrases." and not warnings


@pytest.mark.parametrize(
    ("benign", "harmful", "says"),
    [
        (
            (2, 42),
            (3, 2),
            "Over-refusal is shown to fall in 1 of the 2 arms that are compared with the baseline: fixed. In it, refusal of harmful "
            "prompts is not shown to fall.",
        ),
        ((2, 42), (0, 40), "baseline: fixed. In it, refusal of harmful prompts is shown to fall too."),
        ((2, 3), (3, 2), "Over-refusal is not shown to fall in any of the 2 arms compared with the baseline."),
    ],
)
def test_all_arms_are_weighed_in_one_sentence(tmp_path, benign, harmful, says):
    def rows(label, moved):
        gained, lost = moved
        return [row(label, "baseline", 200, 60, 0, 0, 0), row(label, "random", 200, 60, 60, 0, 0),
                row(label, "fixed", 200, 60 - lost + gained, 60 - lost, gained, lost)]  # fmt: skip

    told(tmp_path, *rows("benign", benign), *rows("harmful", harmful))
    run = open_run(tmp_path)
    assert says in answer.overview(there(answer.pooled_rows(run)), run.named())


def test_an_interval_without_its_test_is_no_finding(tmp_path):
    # Six discordant pairs to none: the score interval leaves 0 out, the exact test of one arm does too, that of many doesn't.
    rows = [row("benign", "baseline", 100, 20, 0, 0, 0), row("benign", "fixed", 100, 14, 14, 0, 6)]
    alone, *_ = told(tmp_path, *rows)
    assert "over-refusal falls from 20.0 % to 14.0 %" in alone
    crowd = [row("benign", f"other-{at}", 100, 20, 20, 0, 0) for at in range(4)]
    among, *_ = told(tmp_path, *rows, *crowd)
    assert "no change of over-refusal is shown" in among and "p = 0.156 adjusted for all comparisons" in among


def test_broken_answers_are_no_cure(tmp_path):
    _, footing, warnings = told(
        tmp_path, row("benign", "baseline", 50, 25, 0, 0, 0), row("benign", "fixed", 50, 0, 0, 0, 25, broken=40)
    )
    assert "Broken answers: 80.0 % of the benign." in footing
    assert len(warnings) == 1 and "80.0 % of its answers to benign prompts are broken (0.0 % unsteered)" in warnings[0]


def judged(failed):
    """Two arms scored by phrases, and by a judge that failed on some answers of one of them."""
    plain = [row("benign", "baseline", 100, 30, 0, 0, 0), row("benign", "fixed", 100, 10, 9, 1, 21)]
    theirs = [row("benign", "baseline", 100, 40, 0, 0, 0), row("benign", "fixed", 100 - failed, 5, 4, 1, 36)]
    return [*plain, *(one | {"scorer": "judge", "n_failed": 100 - one["n"]} for one in theirs)]


def test_a_judge_that_failed_on_much_is_not_gone_by(tmp_path):
    sentence, footing, _ = told(tmp_path, *judged(40))
    assert "from 30.0 % to 10.0 % of 100 benign prompts" in sentence
    assert "Scored by phrases. Not by judge, which gave no verdict on up to 40.0 % of an arm’s answers." in footing
    run = open_run(tmp_path)
    assert [block.name for block in there(rates.section(run)).blocks if isinstance(block, Table)] == [
        "rates-phrases", "rates-judge"
    ]  # fmt: skip


def test_a_judge_that_failed_on_few_is_gone_by_and_it_is_said(tmp_path):
    sentence, footing, _ = told(tmp_path, *judged(2))
    assert "from 40.0 % to 5.1 % of 98 benign prompts" in sentence
    assert "Scored by judge, which gave no verdict on up to 2.0 % of an arm’s answers." in footing
    _, footing, _ = told(tmp_path, *judged(0))
    assert "Scored by judge." in footing
    _, footing, _ = told(tmp_path, *judged(40)[2:])  # there is no other
    assert "Scored by judge, which gave no verdict on up to 40.0 %" in footing


def test_without_a_baseline_nothing_is_claimed(tmp_path):
    lonely = row("benign", "fixed", 50, 5, 0, 0, 0) | dict.fromkeys(("delta", "delta_low", "delta_high", "p"))
    sentence, _, warnings = told(tmp_path, lonely)
    assert sentence == "With fixed, the model refuses 10.0 % of 50 benign prompts." and any(
        "no baseline" in text for text in warnings
    )


def test_lines_join_the_strengths_of_one_kind():
    arms = named(
        ["fixed:layer=3,strength=-0.4", "fixed:layer=4,strength=2", "random", "gated:strength=<b>", "oracle:layer=3"]
    )
    assert [(arm.group, arm.strength) for arm in arms.values()] == [
        ("fixed layer 3", -0.4), ("fixed layer 4", 2.0), ("random", None), ("gated strength <b>", None), ("oracle", None)]  # fmt: skip


def test_arms_are_called_by_what_sets_them_apart():
    whole = "gated:harmful=0.266667,layer=17,strength={},unit=residual"
    arms = named(["baseline", whole.format(-0.4), whole.format(-0.15), "routed:layer=17,strength=0.333333", "fixed:harmful=0.266667",
                  "fixed:harmful=-0.125"])  # fmt: skip
    short = [arm.short for arm in arms.values()]
    assert short == ["baseline", "gated\u00a0−0.4", "gated\u00a0−0.15", "routed\u00a0+0.33", "fixed harmful 0.27",
                     "fixed harmful −0.125"]  # fmt: skip
    told = "gated (harmful 0.27, layer 17, unit residual); routed (layer 17)"
    assert unsaid(arms) == f"Left out of the arms' names, as all of a kind share it: {told}."
    assert alone(whole.format(-0.4)) == "gated harmful 0.27, layer 17, unit residual,\u00a0−0.4"


names = st.builds(
    lambda kind, settings: (
        kind + (":" if settings else "") + ",".join(f"{key}={value}" for key, value in settings.items())
    ),
    st.sampled_from(["fixed", "gated"]),
    st.dictionaries(
        st.sampled_from(["layer", "strength", "unit"]), st.sampled_from(["1", "0.12345678", "0.12345679", "<b>", ""])
    ),
)


@given(st.lists(names, max_size=12, unique=True))
def test_no_two_arms_have_the_same_name(arms):
    assert len({arm.short for arm in named(arms).values()}) == len(arms)


@given(
    st.lists(
        st.builds(labels.Point, st.floats(0, 300), st.floats(0, 200), st.sampled_from(["", "−0.4", "+1", "lowrank"])),
        max_size=12,
    )
)
def test_no_label_covers_a_label_or_a_point(points):
    sides = labels.sides(points, [], 300, 200)
    boxes = [labels.place(point, side) for point, side in zip(points, sides, strict=True) if side]
    assert not any(labels.overlap(a, b) for a, b in itertools.combinations(boxes, 2))
    for at, (point, side) in enumerate(zip(points, sides, strict=True)):
        others = [other for own, other in enumerate(points) if own != at]
        box = labels.place(point, side) if side else (0, 0, 0, 0)
        assert not any(box[0] < other.x < box[2] and box[1] < other.y < box[3] for other in others)
        assert box[0] >= 0 and box[2] <= 300


def test_a_label_keeps_off_the_lines_if_it_can():
    across = (0.0, 85.0, 300.0, 100.0)
    assert labels.sides([labels.Point(150, 100, "+1")], [], 300, 200) == ["right above"]
    assert not labels.crosses(across, labels.place(labels.Point(150, 100, "+1"), labels.sides([labels.Point(150, 100, "+1")], [across], 300, 200)[0]))  # fmt: skip
    assert labels.crosses((0, 0, 10, 10), (4, 4, 6, 6)) and not labels.crosses((0, 0, 10, 10), (6, 0, 9, 3))


def test_a_choice_is_told_whole_with_its_unit_and_how_many_were_tried(run):
    table = run.table("sweep").with_columns(strength_unit=pl.lit("residual"))
    baseline = table.head(1).with_columns(arm=pl.lit("baseline"), layer=None, strength=None, chosen=False)
    told = sweep.chosen(pl.concat([table, baseline], how="vertical_relaxed"))
    tried = table.select("arm", "layer", "strength").unique().height
    assert told.startswith(f"Chosen of {tried} settings: ") and "(in mean lengths of the residual stream)" in told
    assert "…" not in told


def test_pooled_rows_that_repeat_the_only_set_of_a_label_are_not_shown(run):
    summary = run.table("summary")
    one = summary.filter((pl.col("label") == "benign") | ~pl.col("dataset").str.contains("xstest"))
    assert (
        one.filter(~pl.col("dataset").is_in(rates.TOGETHER) & (pl.col("label") == "harmful"))["dataset"].n_unique() == 1
    )
    section = there(rates.section(replace(run, tables=run.tables | {"summary": one})))
    shown = next(table for table in section.tables() if table.name == "rates-phrases").frame
    assert not shown.filter((pl.col("label") == "harmful") & pl.col("dataset").is_in(rates.TOGETHER)).height
    assert shown["dataset"][0] == "(pooled)" and shown["label"].unique(maintain_order=True).to_list() == [
        "benign",
        "harmful",
    ]


def test_what_was_left_out_says_so_only_if_something_was(run):
    scores = run.table("scores").with_columns(fitted=pl.lit(False), verdict=pl.col("verdict").fill_null("comply"))
    section = there(provenance.left_out(replace(run, tables=run.tables | {"scores": scores})))
    assert section.blocks[0].text.startswith(f"Nothing: all {scores.height:,} verdicts count.")
    assert section.tables()[0].folded
    assert (
        section.tables()[0].frame["scorer"].unique(maintain_order=True).to_list()[0] != "token"
    )  # as on the first screen


def test_vectors_of_one_layer_have_no_chart_by_layer(run):
    one = replace(run.vectors, layers=[4], residual_norms=run.vectors.residual_norms[:1],
                  tensors={name: tensor[:1] for name, tensor in run.vectors.tensors.items()})  # fmt: skip
    assert [chart.name for chart in there(vectors.section(replace(run, vectors=one))).charts()] == ["cosines"]
    norm = np.linalg.norm(one.tensors[CATEGORIES[0]][0]) / one.residual_norms[0]
    table = next(t for t in there(vectors.section(replace(run, vectors=one))).tables() if t.name == "vector-dimensions")
    assert table.frame["of_residual"][0] == pytest.approx(norm)


def test_thousands_are_written_out():
    assert [say.number(value) for value in (1140.2, 999.7, 26.71, 0.012345, 12345678.0)] == [
        "1,140",
        "1,000",
        "26.7",
        "0.0123",
        "1.23e+07",
    ]


def test_the_arm_chosen_on_validation_is_spoken_of_first(run):
    assert answer.leading_arm(run, run.arms()) == "fixed:strength=-0.4"
    without = type(run)(run.folder, run.records, {name: table for name, table in run.tables.items() if name != "sweep"})
    assert answer.leading_arm(without, run.arms()) == "fixed:strength=-0.2"
    pooled = there(answer.pooled_rows(run))
    assert "chosen on validation rows" in answer.footing(run, pooled, "fixed:strength=-0.4", run.arms())
    assert "the first of 5 steered arms; none was chosen" in answer.footing(
        without, pooled, "fixed:strength=-0.2", run.arms()
    )


def test_rates_say_shown_only_where_interval_and_adjusted_test_agree(run):
    summary = run.table("summary")
    table = rates.rate_table(summary.filter(pl.col("scorer") == "phrases"), "phrases", run.named(), folded=False)
    for found, (low, high, p) in zip(
        there(table.shown)["difference"],
        table.frame.select("delta_low", "delta_high", "p_holm").iter_rows(),
        strict=True,
    ):
        if found == "shown":
            assert p < 0.05 and (low > 0 or high < 0)


def test_what_was_left_out_adds_up(run):
    section = there(provenance.left_out(run))
    counts = section.tables()[0].frame
    assert (counts["counted"] + counts["fitted"] + counts["failed"] == counts["answers"]).all()
    summary = run.table("summary").filter(~pl.col("dataset").is_in(["(pooled)", "(macro)"]))
    assert (
        counts["failed"].sum() == summary["n_failed"].sum() and counts["fitted"].sum() == summary["n_overlap"].sum() > 0
    )


def test_the_page_names_commands_seeds_and_versions(folder, tmp_path):
    write_report(folder, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert (
        "python cli.py --model example/refuse-llama-8b --data coconot extract vectors generate evaluate report" in page
    )
    for word in ("nnsight", "seed", "revision", "abc123", "n = "):
        assert word in page


def test_a_capability_number_that_steering_never_reached_is_not_drawn(tmp_path):
    schema = {"task": pl.String, "arm": pl.String, "metric": pl.String, "value": pl.Float64, "stderr": pl.Float64, "n": pl.Int64,
              "scored_logits_changed": pl.Boolean}  # fmt: skip
    rows = [("arc", "baseline", "acc", 0.7, 0.02, 100, None), ("arc", "fixed", "acc", 0.7, 0.02, 100, False)]
    pl.DataFrame(rows, schema=schema, orient="row").write_parquet(tmp_path / "capability.parquet")
    section = costs.capability(open_run(tmp_path))
    assert section is not None and "no scored logit changed" in words(section)
    drawn = json.dumps(section.charts()[0].chart.to_dict())
    assert '"baseline"' in drawn and '"fixed"' not in drawn


def test_probe_areas_are_scikit_learns():
    from sklearn.metrics import roc_auc_score, roc_curve

    random = np.random.default_rng(1)
    truth, scores = random.integers(0, 2, 300), random.normal(0, 1, 300)
    fpr, tpr, threshold = roc_curve(truth, scores + truth)
    curve = pl.DataFrame({"fpr": fpr, "tpr": tpr, "threshold": threshold})
    assert probe.area(curve) == pytest.approx(roc_auc_score(truth, scores + truth))
    marked = probe.point(curve, 0.3)
    assert marked["tpr"][0] == pytest.approx(
        ((scores + truth >= marked["threshold"][0]) & (truth == 1)).sum() / (truth == 1).sum()
    )


def test_the_probe_is_shown_with_its_threshold_its_counts_and_other_layers(run):
    section = there(probe.section(run))
    curve, layers = section.charts()
    assert "n = 60 harmful and 60 benign" in curve.caption and "At the threshold 0.420 (ring): " in curve.caption
    assert "The probe reads layer 4." in layers.caption
    quality = run.table("probe_quality")
    shown = there(next(table for table in section.tables() if table.name == "probe-quality").shown)
    assert shown["harmful called harmful"][0] == say.percent(quality["tpr"][0])
    assert shown["95 % interval"][0] == say.span(quality["tpr_low"][0], quality["tpr_high"][0])


def test_base_and_tuned_stand_between_their_own_ceiling_and_floor(run):
    panels = there(diffing.section(run)).charts()
    specs = [json.loads(json.dumps(panel.chart.to_dict())) for panel in panels]
    drawn = {layer["encoding"]["y"]["field"] for layer in specs[0]["layer"]}
    assert drawn == {"value", "low", "ceiling", "floor_low"}
    domains = [layer["encoding"]["y"]["scale"]["domain"] for spec in specs for layer in spec["layer"]]
    assert len(domains) == 4 * len(CATEGORIES) and all(domain == domains[0] for domain in domains)
    (drawn,) = specs[0]["datasets"].values()
    rows = run.table("diff").filter(category=CATEGORIES[0])
    assert [row["ceiling"] for row in drawn] == rows["ceiling"].to_list()  # each layer's own


def test_a_sweep_whose_shortlist_answered_shows_both_stages(run):
    whole = run.table("sweep")
    shortlist = pl.col("strength").is_in([-0.4, 0.2]) & (pl.col("layer") == 4)
    cut = [pl.when(shortlist).then(name).alias(name) for name in ("refused", "broken")]
    section = there(sweep.section(replace(run, tables=run.tables | {"sweep": whole.with_columns(cut)})))
    answered = next(table for table in section.tables() if table.name == "sweep-answered").frame
    assert answered.select("layer", "strength").rows() == [(4, -0.4), (4, 0.2)]
    wanted = whole.filter(shortlist)
    assert answered["refused harmful"].to_list() == wanted.filter(label="harmful")["refused"].to_list()
    chart = section.charts()[0]
    (values,) = chart.chart.to_dict()["datasets"].values()
    rows = whole.filter(label="benign")
    assert chart.title == "fixed: benign prompts" and "Probability of a refusal token" in chart.caption
    assert [cell["value"] for cell in values] == rows["refusal_probability"].to_list()
    assert sum(cell["answered"] for cell in values) == 2
    assert "sweep-answered" not in {table.name for table in there(sweep.section(run)).tables()}  # there, all answered


def test_a_sweep_counts_the_settings_of_every_arm_and_not_the_unsteered_one(run):
    one = run.table("sweep")
    other = one.with_columns(arm=pl.lit("gated"), chosen=pl.lit(False))
    unsteered = one.head(2).with_columns(
        arm=pl.lit("baseline"), layer=pl.lit(None, pl.Int64), strength=pl.lit(None, pl.Float64), chosen=pl.lit(False)
    )
    assert sweep.chosen(pl.concat([unsteered, one, other])).startswith("Chosen of 50 settings: fixed at layer 4")


def test_the_difference_that_was_asked_for_is_named(run):
    asked = replace(run, records=run.records | {"summary": {"key": {"difference": 2.0}}})
    for one, points in ((run, "5 points"), (asked, "2 points")):
        section = there(rates.section(one))
        assert f"n for {points}: the prompts that a difference of {points} needs" in words(section)
        assert f"n for {points}" in section.tables()[0].shown.columns


def test_every_chart_says_how_much_it_rests_on(run):
    charts_of = [chart for make in ordered() if (section := make(run)) for chart in section.charts()]
    assert len(charts_of) > 20
    for chart in charts_of:
        assert re.search(r"n = \d|\d prompts", chart.caption), chart.name


def test_how_the_base_read_the_tags_is_said(run):
    def note(own_split):
        key = {"base": {"model": "base/llama"}, "tuned": {"model": "tuned/llama"}, "own_split": own_split}
        section = there(diffing.section(replace(run, records={"diff": {"key": key}})))
        assert section.title == "tuned/llama against base/llama"
        return words(section)

    assert "same token ids" in note(False) and "different tokens" in note(True)


def test_silhouettes_of_each_group_are_scikit_learns(run, folder):
    from sklearn.metrics import silhouette_samples

    values, rows = there(read_activations(folder, 4, 10_000))
    groups = np.array(activations.group_names(rows))
    table = there(activations.section(run)).tables()[0].frame
    each = np.asarray(silhouette_samples(values, groups))
    for name, n, mean, _ in table.iter_rows():
        member = groups == name if name != "(all)" else groups == groups
        assert n == member.sum() and mean == pytest.approx(each[member].mean())
    one = activations.silhouettes(values[:5], values[:5, :2], ["benign"] * 5, ["benign"])
    assert one["silhouette"].null_count() == one.height


def test_rows_that_share_a_heading_stand_under_it(run):
    page = markup.table(
        rates.rate_table(run.table("summary").filter(scorer="phrases"), "phrases", run.named(), folded=False)
    )
    headings = re.findall(r'<th scope="rowgroup" colspan="(\d+)"><span dir="auto">([^<]*)</span>', page)
    wide = page.count('scope="col"')
    assert len(headings) == len({name for _, name in headings}) and {int(span) for span, _ in headings} == {wide}
    assert ("xstest/safe: benign prompts" in {name for _, name in headings}) and page.count("<tr>") == 1 + run.table(
        "summary").filter(scorer="phrases").height  # fmt: skip


def test_cosines_and_norms_are_numpys(run):
    at = run.vectors.layers.index(4)
    a, b = (run.vectors.tensors[name][at] for name in CATEGORIES[:2])
    table = next(t for t in there(vectors.section(run)).tables() if t.name == "vector-cosines").frame
    assert table[f"cos {CATEGORIES[1]}"][0] == pytest.approx(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
    dimensions = next(t for t in there(vectors.section(run)).tables() if t.name == "vector-dimensions").frame
    assert dimensions["norm"][0] == pytest.approx(np.linalg.norm(a))
    assert dimensions["dimensions"][0][0] == int(np.abs(a).argmax())


@pytest.mark.parametrize(("n_layers", "layer"), [(32, 18), (16, 10), (None, 18), ("many", 18)])
def test_without_arms_the_layer_nearest_to_the_models_default_is_shown(tmp_path, n_layers, layer):
    layers = [10, 17, 18, 31]
    metadata = {"layers": json.dumps(layers), "counts": json.dumps({"a": 3}), "residual_norms": json.dumps([1.0] * 4)}
    save_file({"a": np.ones((4, 3), np.float32)}, tmp_path / "vectors.safetensors", metadata)
    record(tmp_path, "vectors", {} if n_layers is None else {"n_layers": n_layers})
    assert open_run(tmp_path).steered_layer() == layer


def test_the_map_of_activations_is_a_pca_of_the_steered_layer(run, folder):
    from safetensors.numpy import load_file
    from sklearn.metrics import silhouette_score

    whole = load_file(folder / "activations" / "prompts.safetensors")["activations"][:, 4].astype(np.float64)
    values, rows = there(read_activations(folder, 4, 10_000))
    assert np.array_equal(values, whole)
    placed, _ = activations.project(values, "pca")
    centred = whole - whole.mean(0)
    wanted = np.linalg.svd(centred, full_matrices=False)[0][:, :2] * np.linalg.svd(centred, full_matrices=False)[1][:2]
    assert np.allclose(np.abs(placed), np.abs(wanted), atol=1e-6)
    groups = activations.group_names(rows)
    assert say.fixed(float(silhouette_score(whole, groups))) in there(activations.section(run)).charts()[0].caption


def test_t_sne_is_an_option(run):
    section = there(activations.section(run, how="tsne"))
    assert "t-SNE" in section.charts()[0].caption and "mean little" in section.charts()[0].caption


def test_few_rows_are_read_of_a_large_file_and_said_so(folder):
    values, rows = there(read_activations(folder, 4, 25))
    assert len(values) == rows.height == 25 and rows["id"].n_unique() == 25


def test_the_papers_figures_stand_beside_sets_that_are_theirs(run):
    section = paper.section(run)
    assert section is not None
    frame = section.tables()[0].frame
    assert "XSTest safe" in frame["dataset"].to_list() and "WildGuard" not in frame["dataset"].to_list()
    safe = frame.filter(pl.col("dataset") == "XSTest safe")
    assert safe["published base"][0] == pytest.approx(0.28) and safe["published categorical"][0] == pytest.approx(0.036)
    ours = run.table("summary").filter(
        (pl.col("dataset") == "xstest/safe") & (pl.col("scorer") == "judge") & (pl.col("arm") == "baseline")
    )
    assert safe["baseline rate"][0] == ours["rate"][0]
    assert "The papers' model is" in words(section)


def test_answers_are_packed_whole(run):
    generations, scores = run.table("generations"), run.table("scores")
    packed = samples.pack(generations, scores, run.arms(), None)
    assert len(packed["rows"]) == 120 and packed["arms"] == list(ARMS) and packed["limit"] is None
    verdicts = {
        (d, i, a, s): v for d, i, a, s, v in scores.select("dataset", "id", "arm", "scorer", "verdict").iter_rows()
    }
    texts = {(d, i, a): r for d, i, a, r in generations.select("dataset", "id", "arm", "response").iter_rows()}
    for group, key, _, _, _, _, answers in packed["rows"]:
        for arm, found in zip(packed["arms"], answers, strict=True):
            assert found[0] == texts[packed["sets"][group], key, arm]
            for scorer, verdict in zip(packed["scorers"], found[5:], strict=True):
                told = None if verdict < 0 else packed["verdicts"][verdict]
                assert told == verdicts[packed["sets"][group], key, arm, scorer]


def test_long_texts_are_cut_and_the_page_stays_small(run):
    generations = run.table("generations").with_columns(pl.lit("x" * 1_000_000).alias("response"))
    packed = samples.pack(generations.head(50), None, run.arms(), None)
    assert packed["limit"] == 20_000 and len(json.dumps(packed)) < 50 * 25_000
    assert samples.text_limit(generations) * generations.height <= samples.BUDGET


# Files.


def test_assets_are_pictures_and_tables(run, tmp_path):
    sections = [
        there(sweep.section(run)),
        there(costs.effects(run)),
        there(probe.section(run)),
        there(answer.section(run)),
    ]
    names = {path.name for path in write_assets(sections, tmp_path)}
    assert {"sweep-0.png", "sweep-0.svg", "sweep.csv", "sweep.parquet", "effects.csv"} <= names
    assert (tmp_path / "sweep-0.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    pictures = {path.stem: path.read_text() for path in tmp_path.glob("*.svg")}
    assert pictures["sweep-0"].startswith("<svg") and "fixed: benign prompts" in pictures["sweep-0"]
    assert {"trade-off", "probe-roc"} < set(pictures) and not any("currentColor" in text for text in pictures.values())
    assert pl.read_parquet(tmp_path / "sweep.parquet").equals(run.table("sweep"))
    assert pl.read_csv(tmp_path / "sweep.csv").height == run.table("sweep").height


@settings(deadline=None)  # it writes files
@given(st.text())
def test_no_cell_of_a_csv_is_a_formula(tmp_path_factory, text):
    folder = tmp_path_factory.mktemp("csv")
    write_table(Table("t", pl.DataFrame({"text": [text, "=1+1"], "number": [-1.5, 2.0]})), folder)
    with (folder / "t.csv").open(newline="", encoding="utf-8") as file:
        _, *rows = csv.reader(file)
    assert all(not re.match(r"[=+\-@\t\r]", cell) for cell, _ in rows)
    assert [number for _, number in rows] == ["-1.5", "2.0"] and rows[0][0].removeprefix("'") == text.removeprefix("'")
    assert pl.read_parquet(folder / "t.parquet")["text"].to_list() == [text, "=1+1"]


def test_runs_are_compared_on_the_prompts_they_share(folder, tmp_path):
    from statsmodels.stats.contingency_tables import mcnemar

    other = synthetic_run(tmp_path / "other", 80, seed=0, arms=["baseline", "fixed:strength=0.2"])
    titles = write_comparison([folder, other], tmp_path / "compare.html", assets=tmp_path / "assets")
    assert titles[:2] == ["Trade-off", "Paired differences"] and "Answers" in titles
    table = pl.read_parquet(tmp_path / "assets" / "compare-paired.parquet")
    texts = [
        pl.read_parquet(path / "generations.parquet").select("dataset", "id", "prompt").unique()
        for path in (folder, other)
    ]
    shared = texts[0].join(texts[1], on=["dataset", "id", "prompt"])
    a, b = (
        pl.read_parquet(path / "scores.parquet").filter((pl.col("scorer") == "phrases") & (pl.col("label") == "benign")
        & (pl.col("arm") == "baseline") & ~pl.col("fitted"))
        for path in (folder, other)
    )  # fmt: skip
    both = a.join(b, on=["dataset", "id"]).join(shared, on=["dataset", "id"])
    found = table.filter(
        (pl.col("scorer") == "phrases") & (pl.col("label") == "benign") & (pl.col("arm") == "baseline")
    ).row(0, named=True)
    x, y = both["refused"].to_numpy(), both["refused_right"].to_numpy()
    cells = [[(x & y).sum(), (x & ~y).sum()], [(~x & y).sum(), (~x & ~y).sum()]]
    assert found["n"] == both.height and found["delta"] == pytest.approx(y.mean() - x.mean())
    assert found["p"] == pytest.approx(there(mcnemar(cells, exact=True)).pvalue)
    shown = table.filter(
        (pl.col("scorer") == "judge") & (pl.col("p_holm") < 0.05) & (pl.col("delta_low") * pl.col("delta_high") > 0)
    )
    lead = re.search(r'<p class="lead">([^<]*)</p>', (tmp_path / "compare.html").read_text())
    said = f"{shown.height} show" if shown.height else "none shows"
    assert lead is not None and lead[1].startswith("Of 4 paired comparisons with whole, scored by judge, " + said)


def test_a_comparison_takes_two_runs_that_are_there(folder, tmp_path):
    for folders, says in (
        ([folder], "two run directories"),
        ([folder, folder], "twice"),
        ([folder, tmp_path / "no"], "no such run"),
    ):
        with pytest.raises(UserError, match=says):
            write_comparison(folders, tmp_path / "compare.html")


# Safety.

HOSTILE = "</script><script>window.hacked=1</script><img src=x onerror='window.hacked=1'>\u202e\u0000&amp;\u2028"


def test_nothing_that_text_holds_becomes_markup():
    shown = escape(HOSTILE)
    assert "<" not in shown and "'" not in shown and "\u202e" not in shown and "\x00" not in shown
    assert len(escape("x" * 1_000_000)) < 3000


@given(st.text())
def test_json_in_a_script_can_not_end_it_and_reads_back(text):
    packed = as_json({"a": text})
    assert not set("<>&\u2028\u2029") & set(packed) and json.loads(packed) == {"a": text}


@pytest.mark.parametrize(
    ("token", "shown"),
    [(" the", "‘␣the’"), ("[Requests with safety concerns]", "‘[Requests with safety concerns]’"), ("  ", "‘␣␣’"),
     ("a ", "‘a␣’"), ("\n", "‘\n’"), ("\u202e", "‘\\u202e’"), (None, "–")],
)  # fmt: skip
def test_a_tokens_blanks_are_seen_at_its_ends(token, shown):
    assert say.token(token) == shown


@given(st.text())
def test_shown_text_holds_no_character_that_hides_or_turns(text):
    import unicodedata

    from data.visible import HARMLESS

    shown = say.visible(text)
    assert all(unicodedata.category(c)[0] != "C" or c in HARMLESS for c in shown)
    assert not set(shown) & set("\u2028\u2029\u202a\u202e\u2066\u2069\u200e\u200f")


def test_the_page_reaches_for_nothing_and_forbids_it(folder, tmp_path):
    write_report(folder, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)
    assert policy is not None
    rules = dict(rule.strip().split(" ", 1) for rule in policy[1].split(";"))
    assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == "'none'"
    assert "unsafe" not in policy[1] and "http" not in policy[1] and "*" not in policy[1]
    outside = re.sub(r"<script.*?</script>|<style.*?</style>", "", page, flags=re.DOTALL)
    assert not re.search(r"\s(src|srcset|data|action|on\w+)=", outside)
    assert all(link.startswith("#") for link in re.findall(r'href="([^"]*)"', outside))


def test_records_of_any_shape_are_shown_not_trusted(folder, tmp_path):
    for path in folder.iterdir():
        if path.name != "run.json":
            (tmp_path / path.name).symlink_to(path)
    odd = {
        "model": HOSTILE,
        "data": 7,
        "options": [HOSTILE],
        "versions": HOSTILE,
        "command": [HOSTILE],
        "start": None,
        "end": {"x": 1},
        "seed": "\ud800",
    }
    (tmp_path / "run.json").write_text(
        json.dumps({"artefacts": {HOSTILE: odd, "vectors": HOSTILE, "diff": {"against": HOSTILE}}})
    )
    write_report(tmp_path, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<img" not in re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL)


def test_numbers_that_are_none_break_nothing(folder, tmp_path):
    for path in folder.iterdir():
        if path.suffix != ".parquet":
            (tmp_path / path.name).symlink_to(path)
            continue
        frame = pl.read_parquet(path)
        keep = ("dataset", "id", "arm", "kind", "scorer", "category", "layer", "label", "n", "chosen", "text")
        odd = [pl.when(pl.int_range(pl.len()) % 2 == 0).then(None).otherwise(math_nan(kind)).cast(kind).alias(name)
               for name, kind in frame.schema.items() if name not in keep and kind == pl.Float64]  # fmt: skip
        frame.with_columns(odd).write_parquet(tmp_path / path.name)
    write_report(tmp_path, tmp_path / "report.html", assets=None)
    assert "NaN" not in re.sub(r"<script>.*?</script>", "", (tmp_path / "report.html").read_text(), flags=re.DOTALL)


def math_nan(kind):
    return pl.lit(float("nan"), kind)


@pytest.mark.parametrize("counts", ['{"a": 1}', "[]", "nonsense"])
def test_vectors_whose_metadata_lies_are_left_out(tmp_path, counts):
    metadata = {"layers": "[0, 1]", "counts": counts, "residual_norms": "[1.0, 1.0]"}
    save_file({"b": np.zeros((2, 3), np.float32)}, tmp_path / "vectors.safetensors", metadata)
    run = open_run(tmp_path)
    assert run.vectors is None and run.faults[0].startswith("vectors.safetensors: ")


# Looks.


def luminance(colour):
    channels = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("colour", [*charts.COLOURS, charts.GREY])
@pytest.mark.parametrize("paper", ["#ffffff", "#0d1117"])
def test_every_colour_stands_out_on_both_pages(colour, paper):
    bright, dark = sorted((luminance(colour), luminance(paper)), reverse=True)
    assert (bright + 0.05) / (dark + 0.05) >= 3  # WCAG 2.2, criterion 1.4.11


def test_series_differ_in_more_than_colour():
    names = ["baseline", *map(str, range(60))]
    pairs = zip(
        charts._cycled(charts.COLOURS, names, "grey"), charts._cycled(charts.SHAPES, names, "cross", 1), strict=True
    )
    assert len(set(pairs)) == len(names)
    assert len(set(charts.COLOURS)) == len(set(charts.SHAPES)) == len({str(dash) for dash in charts.DASHES}) == 8


def test_a_prompt_that_was_traced_in_several_arms_counts_once_and_each_arm_is_named(run):
    from reports.page.sections.traces import projections, side_by_side

    traces = there(run.table("traces")).with_columns(
        arm=pl.lit("fixed:strength=-0.2"), rendered=pl.lit("<|user|> hello <|end|>")
    )
    twice = pl.concat([traces, traces.with_columns(arm=pl.lit("fixed:strength=-0.4"))])
    (one,), (two,) = map(there, (projections(traces), projections(twice)))
    assert [chart.caption for chart in one.charts] == [
        chart.caption for chart in two.charts
    ] and one.caption == two.caption
    blocks: list[Any] = [*side_by_side(twice)]
    assert any(isinstance(block, Code) and block.text == "<|user|> hello <|end|>" for block in blocks)
    (table,) = (block for block in blocks if isinstance(block, Table))
    assert set(there(table.shown)["arm"]) == {"fixed\u00a0−0.2", "fixed\u00a0−0.4"}
    assert "arm" not in there(there(side_by_side(traces)[-1]).shown).columns


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({}, "at layer 2, strength"),
        ({"layer": None, "scope": None}, "bias of −5 on the control tokens"),
        ({"layer": None, "scope": None, "strength": None}, "an instruction before the prompt"),
    ],
)
def test_what_was_traced_is_said_of_every_kind_of_arm(changed, says):
    from reports.page.sections.traces import how

    row = {"category": "weapons", "layer": 2, "strength": -5.0, "strength_unit": "raw", "scope": "all"}
    assert says in how(row | changed)
