"""One cluster for all tests of this folder, and jobs submitted to it as users do."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

_spec = spec_from_file_location("slurm_cluster", Path(__file__).with_name("cluster.py"))
assert _spec is not None
assert _spec.loader is not None
cluster_module = module_from_spec(_spec)
_spec.loader.exec_module(cluster_module)
SlurmCluster = cluster_module.SlurmCluster


@pytest.fixture(scope="session")
def cluster(tmp_path_factory) -> Iterator[SlurmCluster]:
    with SlurmCluster(tmp_path_factory.mktemp("slurm")) as running:
        yield running


class Jobs:
    """Runs `tenfold` on a login node of the cluster, in the folder of the test's project."""

    def __init__(self, cluster: SlurmCluster, folder: Path) -> None:
        self.cluster = cluster
        self.folder = folder

    def tenfold(self, *arguments: str, check: bool = True) -> str:
        command = [sys.executable, "-m", "tenfold.recipes.cli", *arguments]
        environment = {**self.cluster.environment, "TENFOLD_CACHE": os.environ["TENFOLD_CACHE"]}
        return self.cluster.run(*command, check=check, cwd=self.folder, env=environment)

    def submit(self, *arguments: str) -> str:
        """Submits a job of CPU tasks and returns its id."""
        printed = self.tenfold("submit", "--gpus=false", *arguments)
        return printed.split("job ")[1].split(":")[0].split()[0]

    def preempt(self, job: str, ready: Path) -> None:
        """Takes the nodes away from a job, for a moment, once `ready` is there."""
        self.wait_until(ready.exists, f"{ready} of job {job}")
        restarts = self.cluster.show_job(job)["Restarts"]
        self.cluster.run("sbatch", "-p", "high", "-N2", "--exclusive", "--wrap", "sleep 1")
        self.wait_until(
            lambda: self.cluster.show_job(job)["Restarts"] != restarts, f"job {job} to be requeued"
        )

    @staticmethod
    def wait_until(condition: Callable[[], bool], what: str, timeout: float = 180) -> None:
        end = time.monotonic() + timeout
        while not condition():
            if time.monotonic() > end:
                raise TimeoutError(f"waited {timeout} s for {what}")
            time.sleep(0.2)


@pytest.fixture
def jobs(cluster: SlurmCluster, project: Path) -> Iterator[Jobs]:
    yield Jobs(cluster, project)
    cluster.restore()  # what a test that fails leaves behind would fail the next ones
