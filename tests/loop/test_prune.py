"""A pruned run saves, says so, and can be resumed to the same bits as a run that was never pruned."""

import json
import threading
from pathlib import Path

import pytest
from support.command_line import Cli, wait_for_step
from support.tiny_trainer import assert_same_bits, make_trainer, timeless_metrics, weights
from support.tokens import TINY

from lmtrain.checkpoint.files import load_checkpoint
from lmtrain.errors import PrunedError
from lmtrain.loop.stop_request import PRUNE_FILE, StopRequest, ask_to_prune


def test_only_a_request_made_during_the_run_counts(tmp_path: Path) -> None:
    ask_to_prune(tmp_path, "too old")
    with StopRequest(tmp_path / PRUNE_FILE) as stop:
        assert stop.requested(check_file=True) is None
        assert not (tmp_path / PRUNE_FILE).exists()
        ask_to_prune(tmp_path, "worse than the others")
        assert stop.requested(check_file=False) is None
        request = stop.requested(check_file=True)
        assert isinstance(request, PrunedError)
        assert str(request) == "worse than the others"
        for content in ("", "[]", "{}", "[" * 5000):
            (tmp_path / PRUNE_FILE).write_text(content)
            assert "requested by prune.json" in str(stop.requested(check_file=True))


@pytest.mark.parametrize(("log_interval", "at_step"), [(1, 3), (2, 4), (100, 4)])  # the last: at the evaluation
def test_a_pruned_run_resumes_to_the_same_bits_as_an_undisturbed_run(
    token_folder: Path, tmp_path: Path, log_interval: int, at_step: int
) -> None:
    settings = {"log_interval": log_interval, "checkpoint_interval": 100}
    never = make_trainer(token_folder, tmp_path / "never", **settings)
    never.fit()

    (tmp_path / "pruned").mkdir()
    with StopRequest(tmp_path / "pruned" / PRUNE_FILE) as stop:
        pruned = make_trainer(token_folder, tmp_path / "pruned", stop=stop, **settings)
        step = pruned.step

        def step_and_ask():  # type: ignore[no-untyped-def]
            if pruned.state.step == 2:
                ask_to_prune(tmp_path / "pruned", "no hope")
            return step()

        pruned.step = step_and_ask  # type: ignore[method-assign]
        with pytest.raises(PrunedError, match="no hope"):
            pruned.fit()
    assert pruned.state.step == at_step
    assert load_checkpoint(tmp_path / "pruned" / "checkpoints" / "latest").state["train"]["step"] == at_step
    expected = [line for line in timeless_metrics(tmp_path / "never") if line["step"] <= at_step]
    assert timeless_metrics(tmp_path / "pruned") == expected

    resumed = make_trainer(token_folder, tmp_path / "pruned", **settings)
    resumed.fit()
    assert_same_bits(weights(resumed), weights(never))
    assert timeless_metrics(tmp_path / "pruned") == timeless_metrics(tmp_path / "never")


@pytest.mark.slow
def test_a_pruned_run_says_so_and_its_resume_ignores_the_request(token_folder: Path, tmp_path: Path, cli: Cli) -> None:
    run = tmp_path / "out"

    def ask() -> None:
        wait_for_step(run, 6)
        ask_to_prune(run, "val/loss 4.1 at step 4 gives trial 3 no hope (MedianPruner)")

    asking = threading.Thread(target=ask)
    asking.start()
    done = cli(*TINY, f"data.path={token_folder}", "trainer.max_steps=100000", "hydra.run.dir=out")
    asking.join()
    assert done.returncode == 0, done.stderr
    ended = json.loads((run / "result.json").read_text())
    assert ended["status"] == "pruned"
    assert ended["objective"] == ended["best_val_loss"] is not None
    assert ended["error"] == "PrunedError: val/loss 4.1 at step 4 gives trial 3 no hope (MedianPruner)"
    last = " ".join(done.stdout.split()).rpartition("pruned: ")[2]
    assert last == (
        f"val/loss 4.1 at step 4 gives trial 3 no hope (MedianPruner); saved after step {ended['steps']}; to continue "
        "anyway: python -m lmtrain resume=out"
    )
    assert (run / PRUNE_FILE).exists()
    more = ended["steps"] + 2
    again = cli("resume=out", f"trainer.max_steps={more}")
    assert again.returncode == 0, again.stderr
    assert json.loads((run / "result.json").read_text())["status"] == "completed"
    assert not (run / PRUNE_FILE).exists()
