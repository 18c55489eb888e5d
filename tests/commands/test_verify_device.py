"""`verify-device` checks this machine's CPU from the command line, and says what is wrong with a command."""

import json
import signal
from pathlib import Path

import pytest
from support.command_line import Cli, wait_for_line

from lmtrain.commands.verify_device import chosen_checks, parse_arguments
from lmtrain.errors import ConfigError
from lmtrain.verify.device import report
from lmtrain.verify.device.checks import CHECKS, DEVICE, FIGURES, NAMES
from lmtrain.verify.device.finding import FAILED, MEASURED, NOT_APPLICABLE, NOT_RUN, PASSED, Check, Finding
from lmtrain.verify.device.process import function_of
from lmtrain.verify.device.processes import Reported


@pytest.mark.slow
def test_a_cpu_is_checked_and_the_findings_are_kept(tmp_path: Path, cli: Cli) -> None:
    (tmp_path / "experiments").mkdir()
    done = cli("verify-device", "system.device=cpu", "--only", "prefetch,loss", "--only", "optimizer", timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    (file,) = (tmp_path / "experiments" / "devices").iterdir()
    assert file.name.endswith("-partial.json")
    written = json.loads(file.read_text(encoding="utf-8"))
    assert written["passed"] is True
    assert written["device"]["kind"] == "cpu"
    assert written["overrides"] == ["system.device=cpu"]
    assert {each["check"] for each in written["findings"]} == {DEVICE, "optimizer", "loss", "prefetch"}
    assert {each["status"] for each in written["findings"]} == {PASSED}
    assert "experiments/devices" in done.stdout.splitlines()[-1]
    assert "the loss in chunks is not the loss" in done.stdout  # what a failure would mean
    assert set(tmp_path.iterdir()) == {tmp_path / "experiments"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["system.device=cuda:97"], "use system.device=auto"),
        (["system.device=cpu", "system.dtype=float8", "system.compile=true"], "system.dtype=float8: "),
        (["system.device=cpu", "model.attention=cudnn"], "model.attention=cudnn: "),
    ],
)
def test_overrides_that_the_device_cannot_follow(overrides: list[str], message: str, tmp_path: Path, cli: Cli) -> None:
    done = cli("verify-device", *overrides, "--only", "optimizer", "--json", "out.json", timeout=300)
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("config error: ")]
    assert message in line
    assert "Traceback" not in done.stdout + done.stderr
    assert not (tmp_path / "out.json").exists()


def test_without_time_the_checks_fail(tmp_path: Path, cli: Cli) -> None:
    done = cli("verify-device", "--budget", "1", "--json", "out.json")
    assert done.returncode == 1
    assert "no time was left" in done.stdout
    assert json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))["passed"] is False


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "precisoin"], r"--only precisoin: no such check; choose from device, precision, "),
        (["-m"], "-m: verify-device takes one config"),
        (["resume=outputs/x"], "resume=outputs/x: verify-device starts its own run"),
        (["fork=outputs/x"], "fork=outputs/x: verify-device starts its own runs"),
        (["seed=1,2"], "seed=1,2: has several values, and verify-device takes one config"),
        (["--budget", "0"], "--budget 0: must be above 0"),
    ],
)
def test_mistakes_name_the_argument(arguments: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_arguments(arguments)


def test_the_checks_that_are_chosen() -> None:
    def names(*arguments: str) -> list[str]:
        options = parse_arguments(arguments)
        return [each.name for each in chosen_checks(options.only, skip_figures=options.skip_figures)]

    assert names() == [each.name for each in CHECKS]
    assert FIGURES not in names("--skip-figures")
    assert names("--only", "memory,precision") == [DEVICE, "precision", "memory"]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.function)
def test_every_check_exists(check: Check) -> None:
    assert callable(function_of(check.function))
    assert check.meaning
    assert check.name in NAMES


def reported(name: str, status: str) -> Reported:
    return Reported(Check(name, "", "", "", 1), Finding(status, ""), 0.0)


def test_only_failures_and_checks_without_time_are_bad() -> None:
    good = [reported("loss", PASSED), reported("loss", NOT_APPLICABLE), reported(FIGURES, MEASURED)]
    assert report.is_good([*good, reported(FIGURES, NOT_RUN)])
    for bad in (reported("loss", FAILED), reported("loss", NOT_RUN), reported(FIGURES, FAILED)):
        assert not report.is_good([*good, bad])


def test_where_the_findings_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    device = Reported(CHECKS[0], Finding(PASSED, "", values={"name": "NVIDIA H100 80GB HBM3"}), 0.0)
    assert report.default_file([device], partial=False).name.startswith("nvidia-h100-80gb-hbm3-20")
    assert report.default_file([device], partial=False).parent == Path()
    (tmp_path / "experiments").mkdir()
    assert report.default_file([], partial=True).parent == Path("experiments", "devices")
    assert report.default_file([], partial=True).name.startswith("unknown-")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/thread-self/children").exists(), reason="needs Linux's list of children")
def test_a_stopped_command_leaves_no_process(tmp_path: Path, cli: Cli) -> None:
    started = cli.start("verify-device", "system.device=cpu", "--only", "precision")
    wait_for_line("device: passed", started)  # the process of the checks runs now
    children = processes_of(started.pid)
    assert children
    started.send_signal(signal.SIGTERM)
    assert started.wait(timeout=60) == 143
    assert not [pid for pid in children if Path("/proc", str(pid)).exists()]


def processes_of(parent: int) -> list[int]:
    """Return the direct children of a process."""
    text = Path(f"/proc/{parent}/task/{parent}/children").read_text(encoding="ascii")
    return [int(word) for word in text.split()]
