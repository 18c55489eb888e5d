"""A real Slurm of two nodes on this machine, with its own configuration, ports and folders, for the tests of clusters.

It needs root and Debian's packages `slurmctld slurmd munge slurm-client`.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scontrol", "scancel")
SYSTEM_FOLDERS = ("/usr/sbin", "/usr/local/sbin", "/sbin")  # not in every user's PATH
READY_S = 120
CPUS = 4  # more than the machine may have, so that a waiting job never depends on the number of its cores

CONFIG = """\
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
SchedulerParameters=sched_min_interval=0,batch_sched_delay=0,bf_interval=1,requeue_delay=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
ReturnToService=2
KillWait=30
MessageTimeout=60
SlurmctldTimeout=300
SlurmdTimeout=300
SlurmdParameters=config_overrides
JobAcctGatherType=jobacct_gather/none
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
NodeName=node1 NodeHostname={host} NodeAddr=127.0.0.1 Port={node1} CPUs={cpus} RealMemory=4000 State=UNKNOWN
NodeName=node2 NodeHostname={host} NodeAddr=127.0.0.1 Port={node2} CPUs={cpus} RealMemory=4000 State=UNKNOWN
PartitionName=main Nodes=node1 Default=YES MaxTime=60 PriorityTier=1 GraceTime=60
PartitionName=urgent Nodes=node1 MaxTime=60 PriorityTier=2
PartitionName=both Nodes=node1,node2 MaxTime=60 PriorityTier=1 GraceTime=60
"""


def missing() -> str | None:
    """Return why no Slurm can be started here, or None if it can."""
    if os.name != "posix" or os.geteuid() != 0:
        return "starting Slurm needs root"
    absent = [name for name in PROGRAMS if _program(name) is None]
    return (
        f"Slurm's {', '.join(absent)} not installed (apt-get install slurmctld slurmd munge slurm-client)"
        if absent
        else None
    )


@dataclass(frozen=True)
class Slurm:
    """A running Slurm; `variables` are the environment variables with which its commands find it."""

    folder: Path
    variables: dict[str, str]

    def __call__(self, *command: str, folder: Path | None = None) -> str:
        """Run one of Slurm's commands and return what it prints."""
        environment = {key: value for key, value in os.environ.items() if not key.startswith("SLURM")}
        done = subprocess.run(
            command, env=environment | self.variables, cwd=folder, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def jobs(self) -> dict[str, str]:
        """Return the state of each job in the queue, by its id, which is `ARRAY_TASK` for a job of an array."""
        lines = self("squeue", "--noheader", "--array", "--format=%i %T").splitlines()
        return dict(line.split() for line in lines)

    def field(self, job: str, name: str) -> str:
        """Return a field of a job, as `scontrol show job` has it."""
        words = self("scontrol", "show", "job", job).split()
        return next(word.partition("=")[2] for word in words if word.startswith(f"{name}="))

    def start_again(self, *jobs: str) -> None:
        """Start requeued jobs, for which Slurm itself would wait for two minutes."""
        time.sleep(3)  # a node refuses a job that starts in the same second in which it was killed
        for job in jobs:
            self("scontrol", "update", f"JobId={job}", "StartTime=now")

    def wait_until_gone(self, job: str, timeout_s: float = 300) -> None:
        """Wait until a job, and all jobs of its array, have left the queue."""
        deadline = time.monotonic() + timeout_s
        while any(name.partition("_")[0] == job.partition("_")[0] for name in self.jobs()):
            assert time.monotonic() < deadline, self("squeue", "--array")
            time.sleep(0.2)


@contextlib.contextmanager
def running_slurm(folder: Path) -> Iterator[Slurm]:
    """Start Slurm's daemons with their files in a folder, wait until its nodes are idle, and end them afterwards."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "state").mkdir()
    key = folder / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    controller_port, node1, node2 = _free_ports(3)
    host = socket.gethostname().partition(".")[0]
    text = CONFIG.format(host=host, folder=folder, controller_port=controller_port, node1=node1, node2=node2, cpus=CPUS)
    (folder / "slurm.conf").write_text(text)
    variables = {"SLURM_CONF": str(folder / "slurm.conf")}
    slurm = Slurm(folder, variables)
    munge = [f"--{name}={folder}/munge.{ending}" for name, ending in MUNGE_FILES]
    with contextlib.ExitStack() as stack:
        for command in (
            ["munged", "--foreground", "--force", *munge],
            ["slurmctld", "-D", "-i"],
            ["slurmd", "-D", "-N", "node1"],
            ["slurmd", "-D", "-N", "node2"],
        ):
            stack.enter_context(_daemon(command, folder, variables))
            if command[0] == "munged":
                wait_for(lambda: (folder / "munge.socket").exists(), folder)
        wait_for(lambda: _states_of_nodes(slurm) == {"idle"}, folder)
        yield slurm
        with contextlib.suppress(AssertionError):
            slurm("scancel", "--signal=KILL", "--full", "--user=root")
            slurm("scancel", "--user=root")


MUNGE_FILES = (
    ("socket", "socket"),
    ("key-file", "key"),
    ("log-file", "log"),
    ("pid-file", "pid"),
    ("seed-file", "seed"),
)


def _program(name: str) -> str | None:
    return shutil.which(name) or shutil.which(name, path=os.pathsep.join(SYSTEM_FOLDERS))


@contextlib.contextmanager
def _daemon(command: Sequence[str], folder: Path, variables: dict[str, str]) -> Iterator[None]:
    program = _program(command[0])
    assert program is not None
    # Killed with the tests, so that a killed test leaves no daemon behind.
    started = ["setpriv", "--pdeathsig", "TERM", program, *command[1:]]
    with (folder / f"{command[0]}.out").open("ab") as output:
        process = subprocess.Popen(
            started, env=os.environ | variables, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
        )
    try:
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _states_of_nodes(slurm: Slurm) -> set[str]:
    with contextlib.suppress(AssertionError):
        return set(slurm("sinfo", "--noheader", "--format=%t").split())
    return set()


def wait_for(condition: Callable[[], bool], logs: Path | None = None, timeout_s: float = READY_S) -> None:
    """Wait until a condition is true; if it never is, show the logs in a folder."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            texts = [path.read_text(errors="replace")[-2000:] for path in logs.glob("*.log")] if logs else []
            raise AssertionError("\n".join(["timed out", *texts]))
        time.sleep(0.1)


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
