"""Defaults: of options that may be repeated they are lists, never a text of which each letter is one; and which arms they are."""

import click
import polars as pl
import pytest

from cli import cli


@pytest.mark.parametrize("name", sorted(cli.commands))
def test_repeatable_options_have_lists_as_defaults(name: str) -> None:
    options = [param for param in cli.commands[name].params if isinstance(param, click.Option) and param.multiple]
    assert options
    for option in options:
        fallback = getattr(option, "fallback", ())
        assert fallback is None or isinstance(fallback, (tuple, list)), option.name


def test_the_embedded_models_chosen_setting_stands_where_no_sweep_says_another(
    run, tiny_tuned_folder, prompts_file, tmp_path, monkeypatch
):
    from data.contract import Setting

    def arms():
        table = pl.read_parquet(tmp_path / "r" / "generations.parquet")
        assert set(table.filter(kind="gated")["strength"]) <= {-0.7, 0.0}
        return table["arm"].unique(maintain_order=True).to_list()

    mine = Setting("contrastive", "gated:gate=words,strength=-0.7,bias=8,harmful=0,harmful-bias=0")
    group = ("--run", tmp_path / "r", "--model", tiny_tuned_folder, "--data", prompts_file)
    asked = ("generate", "--max-new-tokens", 1, "--limit", 3)
    monkeypatch.setattr("commands.framework.arms.TUNED_SETTING", mine)
    code, _, err = run(
        *group, "probe", "--gate", "words", "vectors", "--method", "contrastive", *asked, "--arm", "chosen"
    )
    assert code == 1 and "no setting was chosen" in err  # another model
    monkeypatch.setattr("commands.framework.arms.TUNED_MODEL", str(tiny_tuned_folder))
    code, _, err = run(*group, *asked, "--arm", "chosen")
    assert code == 0 and arms() == ["gated"], err
    code, _, err = run(*group, *asked, "--replace")
    assert code == 0 and arms() == ["baseline", "fixed", "routed", "gated"], err
    code, _, err = run(*group, *asked, "--arm", "chosen", "--strength", -0.5)
    assert code == 1 and "no setting was chosen" in err
    code, _, err = run(*group, "vectors", "--method", "mean", *asked, "--arm", "chosen")
    assert code == 1 and "no setting was chosen" in err
