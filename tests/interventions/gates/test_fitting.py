"""How gates are fitted: against scikit-learn, their thresholds against counting, what carries over against gates made by hand."""

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cosine
from scipy.special import logit
from scipy.stats import beta
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import f1_score, roc_auc_score

from data.store.journal import Journal
from data.store.tables import GATE_QUALITY
from interventions.gates import words
from interventions.gates.carry_over import GateRows, carried_over, unchanged_refusal
from interventions.gates.combination import out_of_fold, platt
from interventions.gates.features import fitted
from interventions.gates.kinds import cast, harmfulness, ridge
from interventions.gates.threshold import keep_refusal
from tests.made.tools import Columns


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), penalty=st.sampled_from([0.03, 0.3, 3.0]), width=st.sampled_from([50, 30, 12]))
def test_ridge_is_scikit_learns_with_balanced_weights(seed, penalty, width):
    draw = np.random.default_rng(seed)
    x, harmful = draw.normal(size=(30, width)) * draw.uniform(0.1, 9, width), np.arange(30) < draw.integers(5, 25)
    weight, mean, bias = ridge.fit(x, harmful, penalty)
    share = np.where(harmful, 0.5 / harmful.sum(), 0.5 / (~harmful).sum())
    centre = (share[:, None] * x).sum(0)
    scale = np.sqrt((share[:, None] * (x - centre) ** 2).sum(0)) * np.sqrt(width)
    known = Ridge(alpha=penalty, fit_intercept=False, solver="cholesky").fit(
        (x - centre) / scale, np.where(harmful, 1, -1), share * 30
    )
    fresh = draw.normal(size=(8, width))
    assert np.allclose(
        (fresh - mean) @ weight + bias, ridge.SHARPNESS * known.predict((fresh - centre) / scale), rtol=1e-6, atol=1e-8
    )


def test_words_are_those_that_scikit_learn_counts():
    texts = ["Kill the process!", "how do I KILL a process", "the end", "über das Ende, the END"]
    counts = CountVectorizer(binary=True, token_pattern=r"(?u)\w+", min_df=2).fit(texts)
    known = words.vocabulary(texts)
    assert known == sorted(counts.get_feature_names_out())
    assert np.array_equal(
        words.counted(texts, known), counts.transform(texts).toarray()[:, np.argsort(counts.get_feature_names_out())]
    )


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**31), n=st.integers(5, 400), share=st.sampled_from([0.8, 0.9, 0.95]))
def test_refusal_is_kept_as_promised_and_no_higher_threshold_would_keep_it(seed, n, share):
    draw = np.random.default_rng(seed)
    harmful, declined = draw.random(n) < 0.5, draw.random(n) < 0.8
    score = np.round(draw.beta(2 + 3 * harmful, 5 - 3 * harmful), draw.integers(1, 6)).astype(np.float32)
    found = keep_refusal(score, harmful, declined, share)
    stake = score[harmful & declined]

    def bound(threshold: float) -> float:
        kept = int((stake >= threshold).sum())
        return 0.0 if kept == 0 else float(beta.ppf(0.05, kept, len(stake) - kept + 1))  # Clopper and Pearson

    if found.threshold is None:
        assert not len(stake) or bound(float(stake.min())) < share
        assert found.needed == int(np.ceil(np.log(0.05) / np.log(share)))
        return
    assert bound(found.threshold) >= share and found.low == pytest.approx(bound(found.threshold), abs=1e-6)
    assert found.released == pytest.approx(
        float((score[~harmful] < found.threshold).mean()) if (~harmful).any() else float("nan"), nan_ok=True
    )
    higher = stake[stake >= found.threshold]
    assert bound(float(higher.min()) + 1e-6) < share  # one refusal more would be lost


def linear(seen):
    """A fit that notes which rows it is given."""

    def fit(features, rows, harmful, _themes):
        seen.append(set(rows.tolist()))
        return fitted(*ridge.fit(features.residual((0, "last"), rows), harmful), reads='[[0, "last"]]')

    return fit


def rows_of(harmful, themes, sets, declined=None) -> GateRows:
    labels = ["harmful" if one else "benign" for one in harmful]
    frame = pl.DataFrame({"label": labels, "dataset": list(sets), "prompt": [str(at) for at in range(len(labels))]})
    return GateRows(frame, themes, declined, np.zeros(len(labels), bool))


def test_scores_out_of_fold_come_from_other_themes_alone():
    draw = np.random.default_rng(2)
    harmful, themes, seen = np.tile([True, False], 30), [f"t{at // 6}" for at in range(60)], []
    features = Columns([""] * 60, values=draw.normal(size=(60, 4)))
    score = out_of_fold(features, np.arange(60), harmful, themes, linear(seen))
    assert len(seen) == 5 and np.isfinite(score).all()
    for rows in seen:
        assert not {themes[at] for at in rows} & {themes[at] for at in set(range(60)) - rows}


def test_a_data_set_is_scored_by_a_gate_of_the_others_and_figures_are_counted():
    draw, seen = np.random.default_rng(3), []
    harmful, declined = np.tile([True, False], 45), draw.random(90) < 0.5
    sets, themes = [("a", "b", "c")[at // 30] for at in range(90)], [f"t{at // 3}" for at in range(90)]
    x = draw.normal(size=(90, 3)) + harmful[:, None]
    features = Columns([f"{draw.integers(9)} {draw.integers(9)}" for _ in range(90)], values=x)
    table = carried_over(rows_of(harmful, themes, sets, declined), features, linear(seen), threshold=0.5)
    assert table.schema == pl.Schema(GATE_QUALITY) and table["rows"].to_list() == [
        "other themes",
        "without a",
        "without b",
        "without c",
    ]
    assert seen[-3:] == [set(range(90)) - set(range(30 * at, 30 * at + 30)) for at in range(3)]
    mine = np.arange(30)
    weight, mean, bias = ridge.fit(x[30:], harmful[30:])
    score = 1 / (1 + np.exp(-((x[mine] - mean) @ weight + bias)))
    row = table.row(1, named=True)
    assert row["auc"] == pytest.approx(roc_auc_score(harmful[mine], score))
    both = declined[mine]
    assert row["auc_declined"] == pytest.approx(roc_auc_score(harmful[mine][both], score[both]))
    assert row["harmful_passed"] == pytest.approx((score[harmful[mine]] < 0.5).mean())
    assert row["refusal"] == both[harmful[mine]].mean() and row["over_refusal"] == both[~harmful[mine]].mean()
    kept = [t for t in score if (score[harmful[mine]] >= t).sum() >= both[harmful[mine]].sum()]
    assert row["over_refusal_kept"] == pytest.approx((score[~harmful[mine]] >= max(kept)).mean())
    known = words.vocabulary(features.texts[30:])
    weight, mean, bias = words.fit(features.texts[30:], known, harmful[30:])
    beside = words.counted(features.texts[:30], known) @ weight + bias
    assert row["words_auc"] == pytest.approx(roc_auc_score(harmful[mine], beside), abs=1e-6)


def test_by_the_models_own_margin_over_refusal_at_unchanged_refusal_is_what_it_is():
    draw = np.random.default_rng(5)
    margin, harmful = draw.normal(size=200), draw.random(200) < 0.5
    assert unchanged_refusal(margin, harmful, margin > 0.3) == pytest.approx((margin[~harmful] > 0.3).mean(), abs=0.03)
    assert unchanged_refusal(margin, harmful, np.zeros(200, bool)) == 0


def test_leaving_a_theme_out_in_closed_form_is_fitting_without_it():
    draw = np.random.default_rng(6)
    n, harmful = 40, np.arange(40) % 3 == 0
    z, themes = draw.normal(size=(n, 70)) / 8, [f"t{at % 9}" for at in range(n)]
    found = ridge.without_theme(z @ z.T, harmful, themes, (0.3, 3.0))
    share = np.where(harmful, 0.5 / harmful.sum(), 0.5 / (~harmful).sum()) * n
    for at, penalty in enumerate((0.3, 3.0)):
        for theme in set(themes):
            out = np.array([one == theme for one in themes])
            known = Ridge(alpha=penalty, fit_intercept=False, solver="cholesky").fit(
                z[~out], np.where(harmful, 1, -1)[~out], share[~out]
            )
            assert np.allclose(found[at, out], known.predict(z[out]), atol=1e-8)


@given(st.integers(1, 60), st.integers(1, 40), st.integers(1, 300))
def test_of_many_rows_whole_themes_choose_for_all(themes, each, most):
    names = [f"theme {at % themes}" for at in range(themes * each)]
    chosen = ridge.choosing(names, most).tolist()
    kept = {names[at] for at in chosen}
    assert chosen == [at for at, name in enumerate(names) if name in kept]
    assert len(kept) >= min(themes, 10) and (len(names) > most or len(chosen) == len(names))
    assert len(chosen) <= max(most, (2 * 10) * each)


def test_harmfulness_is_the_difference_of_two_cosines():
    draw = np.random.default_rng(7)
    x, harmful = draw.normal(size=(50, 6)) + 3, draw.random(50) < 0.5
    wanted = [cosine(row, x[~harmful].mean(0)) - cosine(row, x[harmful].mean(0)) for row in x]  # scipy's are distances
    assert np.allclose(harmfulness.cosines(x, harmfulness.direction(x, harmful)), wanted)


def test_casts_best_threshold_is_the_best_of_all():
    draw = np.random.default_rng(8)
    score, harmful = np.round(draw.normal(size=80), 1), draw.random(80) < 0.4
    f1, threshold = cast.best_f1(score, harmful)
    tried = [f1_score(harmful, score >= t) for t in score]
    assert f1 == pytest.approx(max(tried)) and f1_score(harmful, score >= threshold) == pytest.approx(f1)


def test_casts_condition_is_the_first_principal_direction_about_the_middle_of_the_means():
    draw = np.random.default_rng(9)
    x, harmful = draw.normal(size=(60, 5)) * [5, 1, 1, 1, 1], draw.random(60) < 0.3
    centred = x - (x[harmful].mean(0) + x[~harmful].mean(0)) / 2
    assert abs(cast.condition(x, harmful) @ np.linalg.svd(centred)[2][0]) == pytest.approx(1)


def test_platts_calibration_is_scikit_learns(tiny_tuned):
    draw = np.random.default_rng(10)
    harmful = draw.random(300) < 0.3
    score = (1 / (1 + np.exp(-(draw.normal(size=300) + 2 * harmful) * 4))).astype(np.float32)
    a, b = platt(score, harmful)
    calibrated = fitted(np.ones(1), np.zeros(1), 0.0).calibrated(a, b)
    got = calibrated.score(torch.from_numpy(logit(score.astype(float))[:, None]))
    known = LogisticRegression(class_weight="balanced", C=1e6).fit(logit(score.astype(float))[:, None], harmful)
    assert np.allclose(got, known.predict_proba(logit(score.astype(float))[:, None])[:, 1], atol=0.02)


def test_a_killed_fit_looks_at_no_first_position_twice(run, tiny_tuned_folder, prompts_file, tmp_path, monkeypatch):
    from interventions.steering import first_token

    answered, finish, answer = [], Journal.finish, first_token.answer
    monkeypatch.setattr(first_token, "plan_batches", lambda lengths, _most: [[row] for row in range(len(lengths))])
    monkeypatch.setattr(first_token, "answer", lambda *given, **more: answered.append(1) or answer(*given, **more))

    def fit(folder):
        return run("--run", tmp_path / folder, "--model", tiny_tuned_folder, "--data", prompts_file,
                   "probe", "--gate", "control", "--data", prompts_file)  # fmt: skip

    code, _, err = fit("whole")
    assert code == 0, err
    whole, noted = len(answered), []

    def dies(journal, done):
        finish(journal, done)
        noted.append(done)
        if len(noted) == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Journal, "finish", dies)
        code, _, err = fit("killed")
        assert code == 130 and "run the same command again" in err
    code, _, err = fit("killed")
    assert code == 0, err
    assert len(answered) == 2 * whole
    gates = [tmp_path / folder / "gates" for folder in ("whole", "killed")]
    assert {path.name for path in gates[1].iterdir()} == {path.name for path in gates[0].iterdir()}
    first, again = (pl.read_parquet(folder / "control_prompts.parquet") for folder in gates)
    assert first.equals(again) and np.ptp(first["score"].to_numpy()) > 0
