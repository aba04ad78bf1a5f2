"""A chat server on one node, a recipe that asks it on the other, in one job on a real SLURM."""

import json
import sys
from pathlib import Path

import pytest
from tenfold.datamodules.scenes import CauseEffectScenes
from tenfold.datamodules.scenes.files import write_mucr
from tenfold.recipes.catalogue import RECIPES

pytestmark = pytest.mark.slurm

SERVER = Path(__file__).parents[1] / "helpers" / "chat_server.py"


def submit(jobs, *command):
    """Sends the job script with what this cluster has in place of GPUs and twelve cores."""
    script = (RECIPES / "slurm/chat_server.sbatch").read_text()
    for there, here in ((" --gpus-per-node=1", ""), ("task=12", "task=1"), ("task=4", "task=1")):
        assert there in script
        script = script.replace(there, here)
    Path("job.sbatch").write_text(script)
    environment = {
        **jobs.cluster.environment,
        "CHAT_SERVER": f"{sys.executable} {SERVER} {{port}} asked.log",
        "CHAT_WAIT": "60",
    }
    printed = jobs.cluster.run(
        "sbatch", "--output=job.log", "job.sbatch", "tiny", *command, cwd=jobs.folder,
        env=environment,
    )  # fmt: skip
    return printed.split()[-1]


def test_a_recipe_asks_a_server_on_another_node(jobs, project):
    write_mucr(CauseEffectScenes(canvas=32), Path("pairs"), 2)
    ask = [sys.executable, "-m", "tenfold.recipes.cli", "test", "--config", "mucr/zero_shot"]
    ask += ["--data.pairs.root=pairs", "--data.tasks=[c2e]", "--model.backend.base_url={url}"]
    ask += ["--model.judge=null", "--data.num_demonstrations=0", "--run_dir=run", "--overwrite"]
    jobs.cluster.wait_for(submit(jobs, *ask), "COMPLETED", timeout=400)
    asked = Path("asked.log").read_text().splitlines()
    assert len(asked) == 8
    assert all("Option D:" in text for text in asked)
    numbers = json.loads(Path("run/metrics.json").read_text())["test"]
    assert numbers["test/mucr/c2e/accuracy_n"] == 8
    assert numbers["test/mucr/c2e/parse_fail_rate"] == 1  # this server says nothing of use
    jobs.cluster.wait_for(submit(jobs, *ask), "COMPLETED", timeout=400)
    assert Path("asked.log").read_text().splitlines() == asked  # nothing was asked twice


def test_a_server_that_ends_ends_the_job(jobs, project):
    job = submit(jobs, "true")
    jobs.cluster.wait_for(job, "COMPLETED", timeout=200)
    script = Path("job.sbatch").read_text().replace('bash -c "exec $server"', "false")
    Path("job.sbatch").write_text(script)
    printed = jobs.cluster.run("sbatch", "--output=end.log", "job.sbatch", "tiny", "true",
                               cwd=jobs.folder, env=jobs.cluster.environment)  # fmt: skip
    jobs.cluster.wait_for(printed.split()[-1], "FAILED", timeout=200)
    assert "the server has ended" in Path("end.log").read_text()
