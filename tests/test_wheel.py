"""The wheel holds every package and data file, and works away from the checkout."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("kernels", "modules", "datamodules", "callbacks", "recipes")


def project_files() -> list[str]:
    """Files of the checkout, tracked or new."""
    command = ["git", "ls-files", "-co", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [name for name in listed.splitlines() if (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    for name in project_files():
        target = folder / "source" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, target)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder]
    subprocess.run([*command, folder / "source"], check=True, capture_output=True, timeout=300)
    (path,) = folder.glob("*.whl")
    return path


def test_wheel_holds_every_package_and_data_file(wheel):
    packed = set(zipfile.ZipFile(wheel).namelist())
    wanted = {f"tenfold/{name}" for name in project_files() if name.split("/")[0] in ROOMS}
    wanted |= {"tenfold/__init__.py", "tenfold/py.typed"}
    assert wanted - packed == set()
    strangers = {name for name in packed - wanted if ".dist-info/" not in name}
    assert strangers == set()


def test_wheel_works_away_from_the_checkout(wheel, tmp_path):
    """The dependencies come from this environment, through a `.pth` file; `make release-check`
    installs them anew."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    (site,) = (tmp_path / "venv" / "lib").glob("python*/site-packages")
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*install, "--target", site, wheel], check=True, timeout=120)
    packages = Path(pytest.__file__).parents[1]
    # After the wheel's own folder on the path, so that the wheel is what gets imported.
    (site / "dependencies.pth").write_text(f"{packages}\n")

    def tenfold(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [python, "-P", "-m", "tenfold.recipes.cli", *arguments]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)

    where = [python, "-c", "import tenfold; print(tenfold.__file__)"]
    origin = subprocess.run(where, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert Path(origin.strip()).is_relative_to(tmp_path)
    assert "language_model/quickstart" in tenfold("list").stdout
    assert tenfold("copy", "language_model/quickstart", "my.yaml").returncode == 0
    small = ["--data.init_args.sequence_length", "32", "--data.init_args.batch_size", "2"]
    steps = ["--trainer.max_steps", "2", "--trainer.limit_val_batches", "1"]
    fit = tenfold("fit", "--config", "my.yaml", *small, *steps, "--trainer.accelerator", "cpu")
    assert fit.returncode == 0, fit.stderr
    assert (tmp_path / "runs" / tmp_path.name / "my" / "version_0" / "metrics.json").is_file()
