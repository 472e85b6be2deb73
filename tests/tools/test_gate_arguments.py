from __future__ import annotations

import pytest

from bench.errors import ConfigError, RecordError
from bench.gating import THRESHOLDS
from tests.tools.gate_runs import Bench, larger, slower, unsteady
from tools.gate import main


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "one of the arguments --baseline --against is required"),
        (("--baseline", "b"), "give folders of runs to compare, or with --against what to run"),
        (("", "--baseline", "b"), "an empty path names nothing to compare"),
        (("runs", "--baseline", ""), "an empty path names nothing"),
        (("runs",), "one of the arguments --baseline --against is required"),
        (("suite=demo", "--against", "main", "seed=0", "--in-turn"), "--against measures in turn anyway"),
        (("runs", "--baseline", "b", "--format", "html"), "invalid choice: 'html'"),
        (("runs", "--baseline", "b", "--nonsense"), "unrecognized arguments: --nonsense"),
        (("runs", "--baseline", "b", "--thresholds", "step=3"), "no metric 'step'; did you mean step_ms?"),
        (("runs", "--baseline", "b", "--thresholds", "zzz=3"), "no metric 'zzz'; known are step_ms, fp32_step_ms"),
        (("runs", "--baseline", "b", "--thresholds", "step_ms"), "takes METRIC=VALUE, not 'step_ms'"),
        (("runs", "--baseline", "b", "--thresholds", "step_ms=fast"), "takes a number of 0 or more, not 'fast'"),
        (("runs", "--baseline", "b", "--thresholds", "step_ms=-1"), "takes a number of 0 or more"),
        (("runs", "--baseline", "b", "--thresholds", "step_ms=nan"), "takes a number of 0 or more"),
        (("runs", "--baseline", "b", "--treat", "inconclusive"), "takes VERDICT=OUTCOME, not 'inconclusive'"),
        (("runs", "--baseline", "b", "--treat", "unsure=ok"), "no verdict 'unsure'; known are failed, regressed"),
        (("runs", "--baseline", "b", "--treat", "new=bad"), "no outcome for new 'bad'; known are fail,"),
        (("runs", "--baseline", "b", "--write", "pdf=x"), "no format 'pdf'; known are text, markdown, json, junit"),
        (("runs", "--baseline", "b", "--write", "junit="), "takes FORMAT=FILE, not 'junit='"),
    ],
)
def test_wrong_arguments_exit_2_by_name(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_thresholds_can_be_given(bench: Bench) -> None:
    bench.accept(bench.record())
    bench.measure(larger(slower(bench.record(), 1.3), peak_allocated_bytes=41 * 1024**2))
    assert bench.gate() == 1
    assert bench.gate("--thresholds", "peak_allocated_bytes=3", "--thresholds", "step_ms=31", "data_ms=5") == 0


def test_runs_measured_in_turn_are_told_so_and_judged_more_tightly(bench: Bench) -> None:
    bench.accept(bench.record())
    bench.measure(slower(bench.record(), 1.08))
    assert bench.gate() == 0
    assert bench.gate("--in-turn") == 1
    for other in (("--confirm", "1"), ("--release-baseline", str(bench.baseline))):
        with pytest.raises(SystemExit) as caught:
            bench.gate("--in-turn", *other)
        assert caught.value.code == 2


def test_a_policy_file_says_the_same_and_the_command_line_has_the_last_word(bench: Bench) -> None:
    bench.accept(bench.record())
    bench.measure(larger(unsteady(bench.record()), peak_allocated_bytes=41 * 1024**2))
    policy = bench.folder / "gate.yaml"
    policy.write_text("thresholds:\n  peak_allocated_bytes: {limit: 3}\ntreat:\n  inconclusive: ok\n")
    assert bench.gate() == 1
    assert bench.gate("--policy", str(policy)) == 0
    assert bench.gate("--policy", str(policy), "--treat", "inconclusive=fail") == 1
    assert bench.gate("--policy", str(policy), "--treat", "inconclusive=inconclusive") == 3
    policy.write_text("thresholds:\n  peak_allocated_bytes: 1\n")
    assert bench.gate("--policy", str(policy), "--thresholds", "peak_allocated_bytes=3") == 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty"),
        ("[", "is not valid YAML"),
        ("- 1", "is no mapping"),
        ("treshold: {}", "there is no key 'treshold'; did you mean thresholds?"),
        ("thresholds: 3", "thresholds takes a mapping, not 3"),
        ("thresholds: {step: 3}", "there is no metric 'step'; did you mean step_ms?"),
        ("thresholds: {step_ms: {lmit: 3}}", "there is no setting of step_ms 'lmit'; did you mean limit?"),
        ("thresholds: {step_ms: %s}" % ("9" * 400), "step_ms takes a number of 0 or more"),
        ("thresholds: {step_ms: true}", "step_ms takes a number of 0 or more, not True"),
        ("thresholds: {step_ms: {limit: x}}", "step_ms.limit takes a number of 0 or more, not 'x'"),
        ("treat: {odd: ok}", "there is no verdict 'odd'"),
        ("since: 2026-13-01", "is not valid YAML: month must be in 1..12"),
        ("[" * 2000, "is not valid YAML"),
        ("thresholds: {step_ms: {floor_of: steps, floor_pct: 1}}", "there is no metric 'steps'; did you mean step_ms?"),
        ("thresholds: {step_ms: {floor_pct: 1}}", "step_ms.floor_pct needs floor_of"),
        ("thresholds: {peak_process_bytes: {process_shift_pct: 1}}", "there is no setting of peak_process_bytes"),
        ("thresholds: {test_accuracy_pct: {floor_of: step_ms}}", "there is no setting of test_accuracy_pct 'floor_of'"),
        ("alpha: 0.7", "alpha takes a chance between 0 and 0.5, not 0.7"),
        ("prior_df: 0", "prior_df takes 1 or more, not 0"),
        ("resamples: 3", "resamples takes 100 or more, not 3"),
        (
            "thresholds:\n  step_ms: {limit: 8}\n  step_ms: 80",
            "is not valid YAML: the key 'step_ms' stands twice, again in line 3",
        ),
        ("alpha: 0.01\nalpha: 0.4", "the key 'alpha' stands twice, again in line 2"),
        ("treat: {not comparable: fail, not_comparable: ok}", "treat names a verdict twice"),
    ],
)
def test_a_policy_file_with_a_mistake_exits_2_and_says_which(bench: Bench, content: str, message: str) -> None:
    bench.accept(bench.record())
    bench.measure(bench.record())
    (bench.folder / "gate.yaml").write_text(content)
    with pytest.raises((ConfigError, RecordError)) as caught:
        bench.gate("--policy", str(bench.folder / "gate.yaml"))
    assert caught.value.exit_code == 2
    assert message in str(caught.value)


def test_a_verdict_may_count_as_another_outcome(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    bench.accept(bench.record("a"))
    bench.measure(bench.record("a"), bench.record("b"))
    assert bench.gate() == 0
    assert bench.gate("--treat", "new=fail") == 1
    assert "Gate failed: demo/b resnet20 digits seed 0 is new (1 new, 14 ok; 2 cells)." in capsys.readouterr().out
    assert bench.gate("--treat", "new=not_comparable", "ok=inconclusive") == 5


def test_the_help_lists_thresholds_exit_codes_and_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    out = capsys.readouterr().out
    for name in THRESHOLDS:
        assert f"  {name} " in out
    for code in (2, 4, 6, 1, 5, 3, 0):
        assert f"\n  {code}  " in out
    assert "metagrad-bench gate out/new/demo --baseline baseline.json" in out
