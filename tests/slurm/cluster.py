"""A real SLURM of two nodes on this machine, for tests: Debian's slurm-wlm and munge.

    python tests/slurm/cluster.py sinfo        starts it, runs a command in it, and stops it

Everything it needs lies in a folder of its own, ports included, so that it stands beside another
SLURM and may be started by any user. It stops what it started, and nothing else.
"""

import argparse
import getpass
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scontrol", "scancel")
NODES = ("n1", "n2")
GRACE_SECONDS = 60  # between the signal of a preemption and the kill

# `low` is preempted by `high`: its jobs get the signal they asked for, then SIGTERM, and are
# queued again.
CONFIGURATION = """\
ClusterName=tenfold
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CryptoType=crypto/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=1,batch_sched_delay=0,bf_interval=1
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
ReturnToService=2
KillWait=5
MinJobAge=3600
SlurmdTimeout=15
UnkillableStepTimeout=30
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
{nodes}
PartitionName=low Nodes=ALL Default=YES MaxTime=INFINITE PriorityTier=1 GraceTime={grace}
PartitionName=high Nodes=ALL MaxTime=INFINITE PriorityTier=2 PreemptMode=OFF
"""


class SlurmCluster:
    """Two nodes of two cores each.

    Args:
        folder: Where its files go; kept, so that logs can be read.

    Raises:
        RuntimeError: From `start`, a program is missing, or the nodes do not come up; names the
            log to read.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self.daemons: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def environment(self) -> dict[str, str]:
        """What commands need to find this SLURM, and its jobs to find each other."""
        return {
            **os.environ,
            "SLURM_CONF": str(self.folder / "slurm.conf"),
            "MASTER_ADDR": "127.0.0.1",
            "GLOO_SOCKET_IFNAME": "lo",
            "OMP_NUM_THREADS": "1",
            "PATH": os.environ["PATH"] + os.pathsep + "/usr/sbin",
        }

    def __enter__(self) -> "SlurmCluster":
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def start(self) -> None:
        """Starts all daemons and waits until both nodes are idle."""
        path = self.environment["PATH"]
        missing = [name for name in PROGRAMS if shutil.which(name, path=path) is None]
        if missing:
            raise RuntimeError(f"{', '.join(missing)} not found: apt-get install slurm-wlm munge")
        for name in ("state", *(f"spool-{node}" for node in NODES)):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        self.folder.chmod(0o755)  # munge and slurmctld refuse what others may write to
        self._write_configuration()
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        self._start(
            "munged",
            *("munged", "--foreground", "--force", f"--key-file={key}"),
            *(f"--{name}-file={self.folder}/munge.{name}" for name in ("pid", "seed")),
            f"--socket={self.folder}/munge.socket",
        )
        self._wait(lambda: (self.folder / "munge.socket").exists(), "munged")
        self._start("slurmctld", "slurmctld", "-D", "-i")
        for node in NODES:
            self.start_node(node)
        self._wait(lambda: self._states() == ["idle"] * len(NODES), "slurmctld")

    def start_node(self, node: str) -> None:
        """Starts the daemon of a node."""
        self._start(f"slurmd-{node}", "slurmd", "-D", "-N", node)

    def restore(self) -> None:
        """Ends all jobs, and starts the daemons of nodes that were killed."""
        self.run("scancel", "--full", "--user", getpass.getuser(), check=False)
        for node in NODES:
            if f"slurmd-{node}" not in self.daemons:
                self.start_node(node)

    def kill_daemon(self, node: str) -> None:
        """Kills the daemon of a node; what runs on the node goes on."""
        daemon = self.daemons.pop(f"slurmd-{node}")
        daemon.kill()
        daemon.wait()

    def kill_node(self, node: str) -> None:
        """Kills the daemon of a node and all that runs on it, as a power cut does."""
        self.kill_daemon(node)
        for process in _started_on(node):
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)

    def stop(self) -> None:
        """Ends all jobs and daemons."""
        if "slurmctld" in self.daemons:
            self.run("scancel", "--full", "--user", getpass.getuser(), check=False)
        for name in reversed(list(self.daemons)):
            daemon = self.daemons.pop(name)
            daemon.send_signal(signal.SIGTERM)
            try:
                daemon.wait(timeout=15)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()

    def run(self, *command: str, check: bool = True, **kwargs: object) -> str:
        """Runs a command in the environment of the cluster; returns what it prints."""
        options = {"capture_output": True, "text": True, "env": self.environment, **kwargs}
        done = subprocess.run(command, timeout=120, **options)  # type: ignore[call-overload]
        if check and done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip() or done.returncode}")
        return done.stdout.strip() if options["capture_output"] else ""

    def show_job(self, job_id: str) -> dict[str, str]:
        """What SLURM knows of a job: JobState, Reason, Restarts, ExitCode ..."""
        printed = self.run("scontrol", "show", "job", "--oneliner", job_id)
        words = (word.partition("=") for word in printed.split())
        return {name: value for name, _, value in words}

    def wait_for(self, job_id: str, *states: str, timeout: float = 180) -> dict[str, str]:
        """Waits until a job is in one of some states; returns what SLURM knows of it.

        Raises:
            TimeoutError: It does not get there; says where it is.
        """
        end = time.monotonic() + timeout
        while (job := self.show_job(job_id))["JobState"] not in states:
            if time.monotonic() > end:
                raise TimeoutError(f"job {job_id} is {job['JobState']}, not {' or '.join(states)}")
            time.sleep(0.3)
        return job

    def _write_configuration(self) -> None:
        host = socket.gethostname()
        ports = _free_ports(1 + len(NODES))
        nodes = [
            f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=2 "
            "State=UNKNOWN"
            for node, port in zip(NODES, ports[1:], strict=True)
        ]
        text = CONFIGURATION.format(
            host=host,
            ports=ports,
            user=getpass.getuser(),
            folder=self.folder,
            nodes="\n".join(nodes),
            grace=GRACE_SECONDS,
        )
        (self.folder / "slurm.conf").write_text(text)

    def _start(self, name: str, *command: str) -> None:
        with (self.folder / f"{name}.out").open("ab") as log:
            self.daemons[name] = subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                env=self.environment,
                cwd=self.folder,  # which outlives that of a test
                start_new_session=True,
            )

    def _states(self) -> list[str]:
        return self.run("sinfo", "-h", "-N", "-p", "low", "-o", "%T", check=False).split()

    def _wait(self, is_up: object, name: str, timeout: float = 60) -> None:
        end = time.monotonic() + timeout
        while not is_up():  # type: ignore[operator]
            dead = [d for d, process in self.daemons.items() if process.poll() is not None]
            if dead or time.monotonic() > end:
                log = self.folder / f"{dead[0] if dead else name}.out"
                raise RuntimeError(f"{log.stem} did not come up: {log.read_text()[-2000:]}")
            time.sleep(0.2)


def _started_on(node: str) -> list[int]:
    """The processes of jobs on a node, by their environment, and those that watch over them."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            environment = (folder / "environ").read_bytes().split(b"\0")
            command = (folder / "cmdline").read_bytes()
            on_node = f"SLURMD_NODENAME={node}".encode() in environment
            if on_node or (b"slurmstepd" in command and f"-{node}".encode() in command):
                found.append(int(folder.name))
    return found


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("command", nargs=argparse.REMAINDER, help="What to run; default: a shell.")
    words = parser.parse_args().command or [os.environ.get("SHELL", "/bin/sh")]
    with SlurmCluster(Path(tempfile.mkdtemp(prefix="slurm-"))) as cluster:
        print(f"SLURM_CONF={cluster.folder}/slurm.conf", file=sys.stderr)
        sys.exit(subprocess.run(words, env=cluster.environment).returncode)
