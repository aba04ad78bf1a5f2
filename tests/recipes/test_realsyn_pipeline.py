"""`tenfold realsyn`, from pages to pairs: whole runs, kills, other numbers of processes."""

import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image
from tenfold.recipes.cli import main
from tiny_corpus import write_pages

COMMAND = [sys.executable, "-m", "tenfold.recipes.cli", "realsyn"]
# What comes after the embeddings, and what a user reads.
RESULTS = ("pairs", "random", "held_out", "balance", "retrieve", "generate", "cluster")


def recipe(folder: Path, **settings) -> str:
    """A recipe for the pages in `folder`."""
    base = {
        "out": str(folder / "out"),
        "documents": [
            {"class_path": "HtmlFolder", "init_args": {"root": str(folder / "site")}},
        ],
        "encoder": {
            "class_path": "CorpusEncoder",
            "init_args": {"dimensions": 8, "min_count": 1, "num_features": 32},
        },
        "fusion": {"class_path": "TemplateFusion"},
        "held_out": 0.2,
        "images": {"min_side": 100},
        "sentences": {"min_entropy": 0.05},
        "text_clusters": {"num_clusters": 5},
        "image_clusters": {"num_clusters": 4},
        "balance": {"mode": "cap", "cap": 5, "with_random": True},
        "parts": {"documents": 5, "images": 16, "sentences": 32, "clustered_rows": 20},
        "jobs": 1,
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(base | settings))
    return str(path)


def digests(out: Path, names=RESULTS) -> dict[str, str]:
    """SHA-256 of every table and array of the results."""
    return {
        path.relative_to(out).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for name in names
        for path in sorted((out / name).rglob("*"))
        if path.suffix in (".parquet", ".npy")
    }


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A folder with pages, a recipe and its finished run."""
    folder = tmp_path_factory.mktemp("realsyn")
    write_pages(folder / "site")
    assert main(["realsyn", "all", "--config", recipe(folder)]) == 0
    return folder


def test_pairs_are_what_training_reads(finished):
    files = sorted((finished / "out" / "pairs").glob("*.parquet"))
    table = pq.read_table(files)
    names = ["id", "image", "texts", "document", "source", "alt", "nearest", "scores", "synthetic"]
    assert table.column_names == names
    rows = table.to_pylist()
    assert 12 <= len(rows) <= 20  # four clusters, five of each at most
    assert len({row["id"] for row in rows}) == len(rows)
    held_out = {row["document"] for row in pq.read_table(finished / "out/held_out").to_pylist()}
    for row in rows:
        *real, synthetic = row["texts"]
        assert len(real) == 3
        assert row["scores"][:3] == sorted(row["scores"][:3], reverse=True)
        assert all("." in text and len(text.split()) > 5 for text in real)
        assert synthetic.startswith(real[0].rstrip("."))
        assert row["synthetic"] == "template"
        assert row["image"].startswith(b"\x89PNG")
        assert row["document"] not in held_out
        assert row["id"].startswith(row["document"])
    metadata = json.loads(pq.read_schema(files[0]).metadata[b"tenfold.realsyn"])
    assert metadata == {"num_real": 3, "synthetic": "template", "encoder": "CorpusEncoder"}


def test_no_sentence_or_image_of_a_held_out_page_is_in_the_pairs(finished):
    out = finished / "out"
    held_out = pq.read_table(out / "held_out").to_pylist()
    assert held_out
    pages = {row["document"].split("/")[1] for row in held_out}
    texts = {text for row in pq.read_table(out / "pairs").to_pylist() for text in row["texts"][:3]}
    others = [p for p in (finished / "site").glob("*.html") if p.name not in pages]
    elsewhere = " ".join(path.read_text() for path in others)
    assert all(text in elsewhere for text in texts)
    images = {row["image"] for row in pq.read_table(out / "pairs").to_pylist()}
    assert not images & {row["image"] for row in held_out}
    assert all(row["texts"] == [row["alt"]] for row in held_out)


def test_broken_and_missing_images_are_counted_and_named(finished):
    stats = json.loads((finished / "out/stats.json").read_text())
    reasons = stats["filter/quality"]["reasons"]["images"]
    assert reasons["broken image"] >= 4
    assert reasons["the image is not here"] >= 8
    assert reasons["small"] >= 4
    problems = " ".join(stats["extract/pages"]["problems"])
    assert "broken.png): broken image" in problems
    sentences = stats["filter/quality"]["reasons"]["sentences"]
    assert sentences["url"] >= 4
    assert sentences["short"] >= 24
    # common.png is on every fifth page, some of which are held out.
    copies = stats["filter/firsts"]["reasons"]["images"]["copy"]
    assert copies + reasons["like a held-out image"] >= 3


def test_the_funnel_adds_up(finished):
    stats = json.loads((finished / "out/stats.json").read_text())
    counts = {name: step["counts"] for name, step in stats.items()}
    references = counts["extract/pages"]["image references"]
    held_out = counts["extract/pages"]["image references held out"]
    dropped = sum(stats["filter/quality"]["reasons"]["images"].values())
    assert counts["filter/quality"]["images"] == references - held_out - dropped
    copies = stats["filter/firsts"]["reasons"]["images"]["copy"]
    assert counts["filter/firsts"]["images"] == counts["filter/quality"]["images"] - copies
    duplicates = sum(stats["filter/images_duplicates/join"]["reasons"]["images"].values())
    left = counts["filter/firsts"]["images"] - duplicates
    assert counts["filter/images_duplicates/join"]["images"] == left
    outside = sum(stats["balance/band"]["reasons"]["images"].values())
    surplus = sum(stats["balance/select"]["reasons"]["images"].values())
    assert counts["pairs"]["pairs"] == left - outside - surplus
    recall = json.loads((finished / "out/retrieve/recall/summary.json").read_text())
    assert 0 < recall["retrieval/recall_vs_exact"] <= 1
    assert recall["retrieval/cosine_gap"] >= 0


def test_as_many_pairs_are_drawn_at_random_beside_the_balanced_ones(finished):
    out = finished / "out"
    balanced, random = (
        {row["image"]: row["texts"] for row in pq.read_table(out / name).to_pylist()}
        for name in ("pairs", "random")
    )
    assert len(random) == len(balanced)
    assert random.keys() != balanced.keys()
    assert all(random[image] == balanced[image] for image in random.keys() & balanced.keys())


def test_images_of_pairs_are_written_small_where_that_is_asked_for(finished, tmp_path):
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    out = tmp_path / "out"
    before = pq.read_table(out / "pairs").to_pylist()
    changed = recipe(tmp_path, pair_side=50)
    assert main(["realsyn", "all", "--config", changed, "--overwrite"]) == 0
    for name, rows in (("pairs", before), ("random", None), ("held_out", None)):
        found = pq.read_table(out / name).to_pylist()
        assert {min(Image.open(io.BytesIO(row["image"])).size) for row in found} == {50}
        if rows is not None:
            assert [row | {"image": b""} for row in found] == [row | {"image": b""} for row in rows]


def test_the_report_shows_the_same_numbers(finished):
    page = (finished / "out/report/index.html").read_text()
    stats = json.loads((finished / "out/stats.json").read_text())
    assert f"{stats['extract/sentences']['counts']['sentences']:,}" in page
    assert "36.3%" in page  # of the paper, beside ours
    assert "broken image" in page
    for picture in ("funnel.png", "distributions.png"):
        assert (finished / "out/report" / picture).stat().st_size > 5000


def test_a_finished_run_is_read_only_and_other_settings_are_refused(finished, capsys):
    out = finished / "out"
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*.npy")}
    assert main(["realsyn", "all", "--config", str(finished / "recipe.yaml")]) == 0
    assert {p: p.stat().st_mtime_ns for p in out.rglob("*.npy")} == before
    changed = ["--config", str(finished / "recipe.yaml"), "--retrieval.num_texts", "2"]
    assert main(["realsyn", "all", *changed]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "retrieve/probes was made with other settings (num_texts: 3, not 2)" in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "realsyn: which stage? Give one of extract, filter"),
        (["extrakt"], "no stage 'extrakt'"),
        (["all"], "realsyn needs a recipe"),
        (["all", "--config", "RECIPE", "--images.min_sid", "3"], "min_sid"),
        (["all", "--config", "RECIPE", "--balance.cap", "0"], "balance: cap"),
        (["all", "--config", "RECIPE", "--address", "auto"], "add --executor ray"),
        (
            [
                "all",
                "--config",
                "RECIPE",
                "--encoder",
                "{class_path: SentenceEncoder, init_args: {model: x}}",
            ],
            "has not both towers",
        ),
        (
            ["all", "--config", "RECIPE", "--sentences.min_words", "60"],
            "no sentences are left: most",
        ),
    ],
)
def test_what_a_user_gets_wrong_is_one_line(tmp_path, capsys, arguments, message):
    write_pages(tmp_path / "site", 4)
    path = recipe(tmp_path, held_out=0.0)
    given = [path if argument == "RECIPE" else argument for argument in arguments]
    assert main(["realsyn", *given]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert message in lines[-1]
    assert lines[-1].startswith("error: ")


def test_strict_stops_at_the_first_broken_image(tmp_path, capsys):
    write_pages(tmp_path / "site", 4)
    assert main(["realsyn", "extract", "--config", recipe(tmp_path, strict=True)]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "documents (strict): site/page000.html#i" in error


def test_help_and_the_list_of_commands_name_the_options(capsys):
    with pytest.raises(SystemExit):
        main(["realsyn", "all", "--help"])
    assert "--retrieval.num_probes" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "realsyn" in capsys.readouterr().out


@pytest.mark.slow
def test_any_partition_and_number_of_processes_gives_the_same_bytes(finished, tmp_path):
    (tmp_path / "site").symlink_to(finished / "site")
    expected = digests(finished / "out", ["pairs", "held_out"])
    assert expected
    parts = {"documents": 3, "images": 1, "sentences": 11, "clustered_rows": 9, "hashes": 13}
    path = recipe(tmp_path, parts=parts, jobs=4)
    assert main(["realsyn", "all", "--config", path]) == 0
    assert digests(tmp_path / "out", ["pairs", "held_out"]) == expected
    path = recipe(tmp_path, jobs=4, out=str(tmp_path / "same"))
    assert main(["realsyn", "all", "--config", path]) == 0
    assert digests(tmp_path / "same") == digests(finished / "out")


@pytest.mark.slow
def test_ray_gives_the_same_bytes(finished, tmp_path, monkeypatch):
    (tmp_path / "site").symlink_to(finished / "site")
    # Other programs of a busy machine must not make Ray end its workers.
    monkeypatch.setenv("RAY_memory_monitor_refresh_ms", "0")
    path = recipe(tmp_path, executor="ray", jobs=2)
    done = subprocess.run(
        [*COMMAND, "all", "--config", path], capture_output=True, text=True, timeout=550
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert digests(tmp_path / "out") == digests(finished / "out")


@pytest.mark.slow
def test_a_run_killed_at_any_moment_goes_on_to_the_same_bytes(finished, tmp_path):
    (tmp_path / "site").symlink_to(finished / "site")
    path, out = recipe(tmp_path, jobs=2), tmp_path / "out"
    # Killed when the first marker of each of these steps is there.
    steps = [
        "extract/pages",
        "filter/quality",
        "filter/blocks",
        "filter/images_vectors",
        "filter/sentences_duplicates/similar",
        "cluster/assigned",
        "retrieve/search",
        "generate/texts",
        "balance/scores",
        "pairs",
    ]
    kept: dict[Path, int] = {}
    for step in steps:
        process = subprocess.Popen(
            [*COMMAND, "all", "--config", path],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        while not list((out / step).glob("_done/*.json")) and process.poll() is None:
            time.sleep(0.002)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for marker, modified in kept.items():
            assert marker.stat().st_mtime_ns == modified  # what was done is not done again
        kept = {p: p.stat().st_mtime_ns for p in out.glob("**/_done/*.json")}
    done = subprocess.run([*COMMAND, "all", "--config", path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert digests(out) == digests(finished / "out")


@pytest.mark.browser
def test_the_page_opens_in_a_browser_with_its_pictures_and_sections(finished, tmp_path):
    page = (finished / "out/report/index.html").resolve()
    script = tmp_path / "probe.html"
    # The page inside a frame, so that a script can look at what the browser made of it.
    script.write_text(
        f"<iframe id=f src='{page.as_uri()}'></iframe><script>onload = () => {{"
        "const d = document.getElementById('f').contentDocument;"
        "const pictures = [...d.images].map(i => i.complete && i.naturalWidth > 0);"
        "d.querySelectorAll('details').forEach(e => e.open = true);"
        "const rows = d.querySelectorAll('#funnel-table tr').length;"
        "document.title = JSON.stringify({pictures: pictures.length, whole: "
        "pictures.every(Boolean), rows, sections: d.querySelectorAll('details').length});"
        "document.body.innerText = document.title }</script>"
    )
    done = subprocess.run(
        [
            "chromium",
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--allow-file-access-from-files",
            "--virtual-time-budget=5000",
            f"--user-data-dir={tmp_path / 'profile'}",
            "--dump-dom",
            script.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    text = done.stdout[done.stdout.index("{") : done.stdout.index("}") + 1]
    seen = json.loads(text.replace("&quot;", '"'))
    assert seen["whole"], seen
    assert seen["pictures"] >= 10
    assert seen["rows"] == 8  # a header and seven levels
    assert seen["sections"] >= 10
