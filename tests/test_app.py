from __future__ import annotations

import dataclasses
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose
from omegaconf import OmegaConf

from bench.app import parse_arguments, plan_cells, settings_first
from bench.composing.cells import CONFIG_NAME, compose_variants
from bench.composing.groups import group_files, group_options
from bench.composing.refusals import repeated_settings
from bench.composing.search_path import GROUPS, hydra_loader
from bench.config import CellConfig
from bench.errors import ConfigError
from bench.precheck import check_cells
from tools.run import main


def plan(*argv: str) -> tuple[CellConfig, ...]:
    return plan_cells(parse_arguments(argv)).cells


def refusal(*argv: str) -> str:
    with pytest.raises(ConfigError) as caught:
        plan(*argv)
    message = str(caught.value)
    assert "\n" not in message, "a refusal is one sentence"
    return message


def test_a_command_line_without_a_suite_is_one_cell() -> None:
    (cell,) = plan("variant=metagrad_int4_slim", "seed=3")
    assert (cell.method.name, cell.hypernet.name, cell.strategy.name) == ("metagrad", "dual_lstm_fc", "slim")
    assert (cell.weight_bits, cell.activation_bits, cell.error_bits, cell.grad_bits, cell.seed) == (4, 4, 4, 4, 3)


def test_the_demo_suite_holds_the_cells_that_the_readme_promises() -> None:
    assert [cell.variant_name for cell in plan("suite=demo")] == [
        "fp32", "ste_int4", "uint8_int8", "uint8_int4", "metagrad_int8_recompute", "metagrad_int4_retain",
        "metagrad_int4_slim", "metagrad_int4_recompute",
    ]  # fmt: skip


def test_a_suite_sweeps_over_seeds_and_a_choice_of_variants() -> None:
    cells = plan("suite=demo", "seed=1,2", "variant=fp32,ste_int4")
    assert [(cell.variant_name, cell.seed) for cell in cells] == [
        ("fp32", 1), ("fp32", 2), ("ste_int4", 1), ("ste_int4", 2),
    ]  # fmt: skip


def test_cells_that_share_their_files_are_what_hydra_composes_for_each_alone() -> None:
    argv = ["-m", "variant=fp32,metaquant_w1_fc_grad", "seed=3,4", "++protocol.threads=2", "data.root=null"]
    plan_ = plan_cells(parse_arguments(argv))
    with hydra_loader(None):
        configs = [compose(config_name=CONFIG_NAME, overrides=list(job)) for job in plan_.jobs]
    schema = OmegaConf.structured(CellConfig)
    assert list(plan_.cells) == [OmegaConf.to_object(OmegaConf.merge(schema, config)) for config in configs]
    assert [cell.seed for cell in plan_.cells] == [3, 4, 3, 4]


def test_a_variants_other_settings_stay_free() -> None:
    (cell,) = plan("variant=metagrad_int4_slim", "hypernet.hidden=9", "hypernet.form=literal", "optimizer=adam")
    assert (cell.hypernet.hidden, cell.hypernet.form, cell.optimizer.name) == (9, "literal", "adam")


@pytest.mark.parametrize(
    "override", ["weight_bits=8", "method=ste", "method.name=ste", "hypernet=lstm_fc", "method.error_rounding=nearest",
                 "strategy=retain", "strategy.name=retain", "++weight_bits=8", "variant_name=other"]
)  # fmt: skip
def test_a_key_that_the_variant_fixes_cannot_be_overridden_beside_it(override: str) -> None:
    message = refusal("variant=metagrad_int4_slim", override)
    assert "variant=metagrad_int4_slim" in message
    assert override.lstrip("+").split("=")[0] in message


def test_a_swept_variant_fixes_its_keys_too() -> None:
    assert "grad_bits" in refusal("suite=demo", "grad_bits=8")


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("method=nonsense", "'nonsense'"), ("suite=dmo", "demo"), ("variant=metagrad_int4_slm", "metagrad_int4_slim"),
        ("model=resnet21", "resnet20"), ("nonsense=1", "'nonsense'"), ("protocol.epoch=1", "epochs"),
        ("seed=abc", "abc"), ("seed=", "seed"), ("seed=-1", "seed=-1"), ("protocol.epochs=0", "protocol.epochs=0"),
        ("hypernet.hidden=0", "hypernet.hidden=0"), ("hypernet.hidden=9223372036854775808", "1 to 1,000,000"),
        ("hypernet.depth=1000000000", "2 to 100"), ("weight_bits=9", "weight_bits=9"),
        ("protocol.passes=[timing,speed]", "protocol.passes"), ("optimizer.momentum=1", "optimizer.momentum=1"),
        ("a b", "a b"), ("seed=[1", "seed=[1"), ("suite=demo,single", "one suite"), ("--nonsense", "--nonsense"),
        ("optimizer.lr=inf", "optimizer.lr=inf"), ("optimizer.lr=nan", "optimizer.lr=nan"),
        ("protocol.pass_limit_s=inf", "pass_limit_s"), ("protocol.threads=100000000", "protocol.threads"),
        ("suite_name=../x", "suite_name"), ("data.image_size=-8", "data.image_size=-8"), ("+new=1", "'new'"),
        ("model={a:1}", "model"), ("compact='7'", "true or false"), ("compact=maybe", "true or false"),
    ],
)  # fmt: skip
def test_a_mistake_is_refused_by_name_in_one_sentence(override: str, named: str) -> None:
    assert named in refusal(override)


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (
            ["variant=fp32", "seed=0", "-m", "seed=1"],
            "seed is given 2 times (seed=0, seed=1): the last counts; a list sweeps over all, seed=0,1.",
        ),
        (["suite=demo", "variant=fp32", "variant=bf16"], "the last counts; a list sweeps over all, variant=fp32,bf16."),
        (["suite=demo", "suite=single", "variant=fp32"], "(suite=demo, suite=single): the last counts."),
        (["variant=fp32", "output_dir=a", "output_dir=b"], "(output_dir=a, output_dir=b): the last counts."),
    ],
)  # fmt: skip
def test_of_a_key_given_twice_the_last_counts_and_a_notice_says_so(argv: list[str], sentence: str) -> None:
    (notice,) = plan_cells(parse_arguments(argv)).notices
    assert notice.endswith(sentence)


def test_the_same_value_given_twice_is_worth_no_notice() -> None:
    assert plan_cells(parse_arguments(["variant=fp32", "seed=0", "++seed=0"])).notices == ()


def test_keys_that_share_a_beginning_and_keys_that_are_taken_out_first_are_not_given_twice() -> None:
    (cell,) = plan("model=resnet32", "model.shortcut=B", "~seed", "+seed=2", "protocol=tiny", "protocol.epochs=3")
    assert (cell.model.name, cell.model.shortcut, cell.seed, cell.protocol.epochs) == ("resnet32", "B", 2, 3)
    assert repeated_settings(["optimizer@a=sgd", "optimizer@b=adam", "~seed", "+seed=2"]) == ()
    narrowed = plan("suite=demo", "variant=fp32,ste_int4", "seed=1")
    assert len(narrowed) == 2, "a suite's own sweep is narrowed, not given twice"


def test_several_values_without_multirun_are_refused() -> None:
    assert "--multirun" in refusal("seed=1,2")


def test_a_users_suites_and_variants_come_with_config_dir(tmp_path: Path) -> None:
    write(tmp_path / "variant" / "mine.yaml", "# @package _global_\n# Six bits.\nvariant_name: mine\nseed: 7\n")
    write(
        tmp_path / "suite" / "ours.yaml",
        "# @package _global_\nsuite_name: ours\n"
        "hydra:\n  mode: MULTIRUN\n  sweeper:\n    params:\n      variant: mine,fp32\n",
    )
    cells = plan("suite=ours", "--config-dir", str(tmp_path))
    assert [(cell.suite_name, cell.variant_name, cell.seed) for cell in cells] == [
        ("ours", "mine", 7),
        ("ours", "fp32", 0),
    ]
    assert group_files("variant", str(tmp_path))["mine"] == "Six bits."


def test_what_the_docs_say_of_a_suite_of_ones_own_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (Path(__file__).parents[1] / "docs" / "suites.md").read_text(encoding="utf-8")
    files = re.findall(r"`configs/(\S+\.yaml)` .*?```yaml\n(.*?)```", page, flags=re.DOTALL)
    assert [name for name, _ in files] == ["variant/six_bits.yaml", "suite/mine.yaml"]
    for name, text in files:
        write(tmp_path / "configs" / name, text)
    monkeypatch.chdir(tmp_path)
    (line,) = re.findall(r"`metagrad-bench run (suite=mine .* seed=0)` narrows", page)
    cells = plan(*shlex.split(line))
    assert [(cell.variant_name, cell.seed) for cell in cells] == [("fp32", 0), ("six_bits", 0)]
    assert main([*shlex.split(line), "--cfg", "job"]) == 0, "Hydra takes it as well"
    assert "suite_name: mine" in capsys.readouterr().out
    assert group_files("suite", "configs")["mine"].startswith("Six bits against FP32")


def test_the_docs_list_every_setting_with_its_value_and_meaning() -> None:
    page = (Path(__file__).parents[1] / "docs" / "settings.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\S+)` \| `(\S+)` \| \S.* \|$", page, flags=re.MULTILINE)
    (cell,) = plan()
    settings = dict(leaves(dataclasses.asdict(cell)))
    assert {key: yaml.safe_load(value) for key, value in rows} == settings
    assert [key for key, _ in rows] == list(settings), "each once, in the order of --cfg job"
    assert plan(*(f"{key}={value}" for key, value in rows)) == (cell,)


def leaves(node: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def test_the_docs_network_of_ones_own_can_be_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[1] / "docs" / "suites.md").read_text(encoding="utf-8")
    (network,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    (settings,) = re.findall(r"`(model=custom model.factory=mynets:make)`", page)
    write(tmp_path / "mynets.py", network)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path])
    check_cells(plan(*settings.split(), "variant=uint8_int8", "data=digits", "protocol=demo", "device=cpu"))


def test_flags_may_stand_before_settings() -> None:
    given = ["a=1", "--config-dir", "d=4", "-m", "b=2", "--cfg=job", "c=3"]
    assert settings_first(given) == ["a=1", "b=2", "c=3", "--config-dir", "d=4", "-m", "--cfg=job"]
    assert "unrecognized arguments: --wrong" in refusal("suite=demo", "--wrong", "seed=0").lower()


def test_a_users_variant_carries_the_name_of_its_file(tmp_path: Path) -> None:
    write(tmp_path / "variant" / "mine.yaml", "# @package _global_\nvariant_name: yours\n")
    assert "variant_name" in refusal("variant=mine", "--config-dir", str(tmp_path))


def test_a_typo_in_a_users_variant_is_refused_by_its_key(tmp_path: Path) -> None:
    write(tmp_path / "variant" / "mine.yaml", "# @package _global_\nvariant_name: mine\nwieght_bits: 4\n")
    assert "wieght_bits" in refusal("variant=mine", "--config-dir", str(tmp_path))


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("variant/mine", "# @package _global_\nvariant_name: mine\ncompact: 7", "variant/mine.yaml has compact: 7, "),
        ("protocol/mine", "augment: '3'", "protocol/mine.yaml has protocol.augment: 3, "),
        ("suite/mine", "# @package _global_\nsuite_name: mine\nprogress: null", "suite/mine.yaml has progress: null, "),
        (
            "suite/mine",
            "# @package _global_\nsuite_name: mine\nhydra: {mode: MULTIRUN, sweeper: {params: {compact: 7}}}",
            "compact=7 is not possible",
        ),
    ],
)
def test_only_true_and_false_stand_for_themselves_in_a_users_file(
    name: str, text: str, sentence: str, tmp_path: Path
) -> None:
    write(tmp_path / f"{name}.yaml", text)
    message = refusal(name.replace("/", "="), "--config-dir", str(tmp_path))
    assert message.startswith(sentence)
    assert message.endswith("must be true or false.")
    write(tmp_path / f"{name}.yaml", text.replace("7", "yes").replace("'3'", "true").replace("null", "${compact}"))
    assert plan(name.replace("/", "="), "--config-dir", str(tmp_path)), "true, and what names another setting"


@pytest.mark.parametrize("body", ["weight_bits: 8", "hypernet: {name: fc_grad}", "method: {error_rounding: nearest}"])
def test_a_suites_body_cannot_change_what_a_variant_fixes(body: str, tmp_path: Path) -> None:
    sweep = "hydra: {mode: MULTIRUN, sweeper: {params: {variant: metagrad_int4_slim}}}"
    write(tmp_path / "suite" / "ours.yaml", f"# @package _global_\nsuite_name: ours\n{body}\n{sweep}\n")
    assert "variant=metagrad_int4_slim" in refusal("suite=ours", "--config-dir", str(tmp_path))


def test_a_sweep_beside_a_variant_cannot_change_what_it_fixes() -> None:
    assert "weight_bits" in refusal(
        "suite=demo", "hydra.sweeper.params.variant=ste_int4", "+hydra.sweeper.params.weight_bits=8"
    )


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (
            "output_dir: a/${sead}",
            "output_dir in suite/mine.yaml holds ${sead}, which names no setting: did you mean ${s",
        ),
        ("protocol: {epochs: '${ epoch }'}", "${epoch}, which names no setting: did you mean ${protocol.epochs}"),
        (
            "output_dir: ${NOPE}",
            "${NOPE}, which names no setting: write ${seed} for the value of a setting, ${oc.env:N",
        ),
        ("output_dir: ${oc.env:NOPE}", "${oc.env:NOPE}, which names an environment variable that is not set: set it, "),
        ("output_dir: ${env:X}", "${env:...}, which asks for what there is not: write ${seed}"),
        ("output_dir: ${data.root}\ndata: {root: '${output_dir}'}", "leads back to itself: give it a value of its own"),
        (
            "seed: ${data.name}",
            "seed in suite/mine.yaml holds ${data.name}, which does not fit (Value 'digits' of type",
        ),
        ("output_dir: '${'", "output_dir in suite/mine.yaml holds ${...}, which cannot be read ("),
    ],
)
def test_what_stands_for_nothing_is_named_with_its_place_and_a_remedy(
    body: str, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NOPE", raising=False)
    write(tmp_path / "suite" / "mine.yaml", f"# @package _global_\nsuite_name: mine\n{body}\n")
    message = refusal("suite=mine", "--config-dir", str(tmp_path))
    assert sentence in message
    assert " in suite/mine.yaml holds ${" in message
    assert refusal("data.root=${nope}").startswith("data.root holds ${nope}, which names no setting: write ${seed}")


def test_broken_yaml_in_a_users_variant_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "variant" / "mine.yaml", "# @package _global_\nvariant_name: [mine\n")
    assert "mine" in refusal("variant=mine", "--config-dir", str(tmp_path))
    write(tmp_path / "variant" / "mine.yaml", "# @package _global_\nvariant_name: mine\nseed: 1\nseed: 2\n")
    assert "duplicate key seed" in refusal("variant=mine", "--config-dir", str(tmp_path))


def test_a_file_of_ours_is_not_shadowed_in_silence(tmp_path: Path) -> None:
    write(tmp_path / "variant" / "fp32.yaml", "# @package _global_\nvariant_name: fp32\nseed: 9\n")
    assert "fp32" in refusal("variant=fp32", "--config-dir", str(tmp_path))


def test_a_config_dir_that_is_not_there_is_refused(tmp_path: Path) -> None:
    assert "--config-dir" in refusal("seed=1", "--config-dir", str(tmp_path / "missing"))


def test_every_group_offers_something_and_every_variant_is_labelled() -> None:
    assert all(group_options(group) for group in GROUPS)
    for name, cell in compose_variants().items():
        assert cell.variant_name == name or cell.variant_name.startswith(f"{name}_")


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
