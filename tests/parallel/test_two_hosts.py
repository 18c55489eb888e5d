"""Runs of two processes on two hosts, whose network is slow or fails, and which are slow or stop."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.command_line import Cli, Started, clean_environment, wait_for_step
from support.network import Network, missing, two_hosts
from support.ranks import start_ranks, train_ranks, wait_for_all
from support.tiny_trainer import timeless_metrics
from support.tokens import TINY, write_tokens

import lmtrain
from lmtrain.checkpoint.folder import CheckpointFolder, verify_checkpoint

STEPS = 120
RUN = [*TINY, "data.path=data/tiny", f"trainer.max_steps={STEPS}", "trainer.eval_interval=60",
       "trainer.checkpoint_interval=20", "trainer.log_interval=10"]  # fmt: skip
TIMEOUT_S = 5
# From the timeout until the end: a host waits for the reasons of others, and for a store that does not answer.
MARGIN_S = 40
NO_ANSWER = "another process has ended or does not answer"


@pytest.fixture
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    if (reason := missing()) is not None:
        pytest.skip(reason)
    try:
        with two_hosts(tmp_path_factory.mktemp("network")) as made:
            yield made
    except OSError as error:
        pytest.skip(f"no network namespaces here: {error}")


@pytest.fixture(autouse=True)
def data(tmp_path: Path) -> Path:
    return write_tokens(tmp_path / "data" / "tiny")


@pytest.fixture(scope="module")
def whole(module_cli: Cli) -> Path:
    """Return a run of two processes on one host that nothing disturbed."""
    write_tokens(module_cli.folder / "data" / "tiny")
    train_ranks(module_cli, 2, *RUN, "hydra.run.dir=whole")
    return module_cli.folder / "whole"


def start_on(network: Network, cli: Cli, *arguments: str, **environment: str) -> list[Started]:
    hosts = [network.first, network.second]
    return start_ranks(cli, 2, *arguments, "hydra.run.dir=run", hosts=hosts, **environment)


def printed(process: Started) -> str:
    """Return what a process prints, without a line of torch about addresses that have no name."""
    lines = (process.stdout + process.stderr).splitlines()
    return "\n".join(line for line in lines if line and "[c10d] The hostname of the client socket" not in line)


@pytest.mark.slow
@pytest.mark.parametrize("rendezvous", ["static", "c10d"])
def test_torchrun_on_two_hosts_trains_as_on_one(network: Network, tmp_path: Path, whole: Path, rendezvous: str) -> None:
    texts = wait_for_torchrun(start_torchrun(network, tmp_path, rendezvous), tmp_path)
    assert "2 processes with DDP" in texts[0]
    assert "step" not in texts[1]
    assert timeless_metrics(tmp_path / "run") == timeless_metrics(whole)


@pytest.mark.slow
def test_torchrun_starts_the_processes_of_both_hosts_again(network: Network, tmp_path: Path, whole: Path) -> None:
    processes = start_torchrun(network, tmp_path, "c10d", "--max-restarts=1")
    try:
        wait_for_step(tmp_path / "run", 60, timeout_s=120)
        pid = processes[1].pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="utf-8").split()
        os.kill(int(children[-1]), signal.SIGKILL)
    finally:
        texts = wait_for_torchrun(processes, tmp_path)
    assert "restarted by torchrun: continues the run in run" in texts[0]
    assert timeless_metrics(tmp_path / "run") == timeless_metrics(whole)


def start_torchrun(network: Network, folder: Path, rendezvous: str, *options: str) -> "list[subprocess.Popen[bytes]]":
    """Start torchrun on both hosts, with the output in files."""
    address = network.first.address
    processes = []
    for rank, host in enumerate([network.first, network.second]):
        meet = {
            "static": [f"--node-rank={rank}", f"--master-addr={address}", "--master-port=29500"],
            "c10d": ["--rdzv-backend=c10d", "--rdzv-endpoint=host-a:29500", "--rdzv-id=7", f"--local-addr={host.name}"],
        }[rendezvous]
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1", *meet,
                    *options]  # fmt: skip
        package = {"PYTHONPATH": str(Path(lmtrain.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
        command = host.command(*torchrun, "-m", "lmtrain", *RUN, "hydra.run.dir=run")
        with (folder / f"{host.name}.out").open("wb") as output:
            processes.append(
                subprocess.Popen(command, cwd=folder, env=clean_environment() | package, stdout=output, stderr=output)
            )
    return processes


def wait_for_torchrun(processes: "list[subprocess.Popen[bytes]]", folder: Path) -> list[str]:
    """Wait until torchrun has completed on both hosts; return what it printed on each."""
    try:
        codes = [process.wait(180) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    texts = [path.read_text() for path in sorted(folder.glob("*.out"))]
    assert codes == [0, 0], texts
    return texts


@pytest.mark.slow
def test_a_cut_cable_ends_both_hosts_and_a_resume_continues(
    network: Network, cli: Cli, tmp_path: Path, whole: Path
) -> None:
    processes = start_on(network, cli, *RUN, f"parallel.timeout_s={TIMEOUT_S}")
    wait_for_step(tmp_path / "run", 60)
    network.cut()
    assert wait_for_all(processes, TIMEOUT_S + MARGIN_S) == [1, 1]
    first, second = map(printed, processes)
    assert f"failed: rank 0 on host-a: {NO_ANSWER} (" in first
    assert "; no answer from rank 1 on host-b" in first
    assert "to continue from step" in first
    assert second.startswith(f"rank 1 on host-b: {NO_ANSWER} (")
    assert len(second.splitlines()) == 1
    for step in CheckpointFolder.of_run(tmp_path / "run").steps():
        verify_checkpoint(CheckpointFolder.of_run(tmp_path / "run").at(step))
    network.reconnect()
    for process in start_ranks(cli, 2, "resume=run", hosts=[network.first, network.second]):
        assert process.wait(120) == 0, printed(process)
    assert timeless_metrics(tmp_path / "run") == timeless_metrics(whole)


@pytest.mark.slow
@pytest.mark.parametrize("shards", [1, 2])
def test_fsdp_on_two_hosts_trains_as_on_one(
    network: Network, cli: Cli, tmp_path: Path, whole: Path, shards: int
) -> None:
    """Also where the groups of processes are made later than the first connection."""
    processes = start_on(network, cli, *RUN, "parallel=fsdp", f"parallel.shards={shards}")
    assert wait_for_all(processes, 150) == [0, 0], list(map(printed, processes))
    for line, expected in zip(timeless_metrics(tmp_path / "run"), timeless_metrics(whole), strict=True):
        assert line == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
def test_a_slow_link_changes_no_number(network: Network, cli: Cli, tmp_path: Path, whole: Path) -> None:
    network.slow_down("8mbit")
    processes = start_on(network, cli, *RUN)
    assert wait_for_all(processes, 150) == [0, 0], list(map(printed, processes))
    assert timeless_metrics(tmp_path / "run") == timeless_metrics(whole)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_host_that_stops_for_less_than_the_timeout_changes_no_number(
    network: Network, cli: Cli, tmp_path: Path, whole: Path, rank: int
) -> None:
    processes = start_on(network, cli, *RUN, "parallel.timeout_s=60")
    for step in (10, 30, 60):
        wait_for_step(tmp_path / "run", step)
        processes[rank].send_signal(signal.SIGSTOP)
        time.sleep(1.5)
        processes[rank].send_signal(signal.SIGCONT)
    assert wait_for_all(processes, 150) == [0, 0], list(map(printed, processes))
    assert timeless_metrics(tmp_path / "run") == timeless_metrics(whole)


@pytest.mark.slow
def test_the_first_host_stops_for_longer_than_the_timeout(network: Network, cli: Cli, tmp_path: Path) -> None:
    """The other one can't ask it why, because it holds the connection."""
    processes = start_on(network, cli, *RUN, f"parallel.timeout_s={TIMEOUT_S}")
    wait_for_step(tmp_path / "run", 10)
    processes[0].send_signal(signal.SIGSTOP)
    assert processes[1].wait(TIMEOUT_S + MARGIN_S) == 1
    assert printed(processes[1]).startswith(f"rank 1 on host-b: {NO_ANSWER} (")
    processes[0].send_signal(signal.SIGCONT)
    assert processes[0].wait(TIMEOUT_S + MARGIN_S) == 1
    assert f"failed: rank 0 on host-a: {NO_ANSWER} (" in printed(processes[0])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("interface", "mistake"),
    [
        ("eth7", "there is no such interface, only eth0, lo; unset it"),
        ("lo", "other hosts can't be reached through this interface; unset it"),
    ],
)
def test_a_wrong_interface_is_named_at_once(network: Network, cli: Cli, interface: str, mistake: str) -> None:
    processes = start_on(network, cli, *RUN, GLOO_SOCKET_IFNAME=interface)
    assert set(wait_for_all(processes, 60)) <= {1, 2}
    text = "\n".join(map(printed, processes))
    assert f"GLOO_SOCKET_IFNAME={interface}: on host-" in text
    assert mistake in text
    assert "Traceback" not in text
