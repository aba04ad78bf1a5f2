"""The report of a run: a page and two pictures that one looks at before training on the result."""

import base64
import html
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ...modules.files import atomic_write
from .extraction import part
from .funnel import PAPER, Level, funnel_of
from .images import decode_image
from .report_figures import draw_distributions, draw_funnel
from .steps import Finished
from .tables import read_table, take_rows

THUMBNAIL = 96
SUMMARIES = {
    "filter/images_duplicates/join": "Duplicate images",
    "filter/sentences_duplicates/join": "Duplicate sentences",
    "retrieve/recall": "Retrieval against an exact search",
    "retrieve/uses": "Use of sentences and clusters",
    "balance/band": "Similarity band",
    "balance/select": "Balance",
}
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem;
       color: #222; background: #fff; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
table { border-collapse: collapse; } td, th { padding: .2rem .8rem; text-align: right;
        border-bottom: 1px solid #ddd; } th:first-child, td:first-child { text-align: left; }
td.text { text-align: left; max-width: 34rem; overflow-wrap: anywhere; }
.figure { max-width: 100%; } .cards { display: flex; flex-wrap: wrap; gap: .8rem; }
.card { width: 11rem; font-size: .8rem; overflow-wrap: anywhere; } .card.wide { width: 100%; }
.card img { max-width: 96px; max-height: 96px; background: #eee; }
.wide { display: flex; gap: 1rem; } summary { cursor: pointer; font-weight: 600; }
.reason { color: #a33; } .kept { color: #275; } .quiet { color: #666; }
"""


def write_report(out: Path, finished: Mapping[str, Finished], settings: Any) -> Path:
    """Writes `report/index.html`, `funnel.png` and `distributions.png`.

    Args:
        out: The pipeline's folder.
        finished: Its steps.
        settings: Its `Settings`, for thresholds.

    Returns:
        The page.
    """
    folder = out / "report"
    levels = funnel_of(finished)
    draw_funnel(levels, folder / "funnel.png")
    draw_distributions(finished, thresholds(out, settings), folder / "distributions.png")
    body = [
        "<h1>RealSyn: from documents to pairs</h1>",
        _funnel_table(levels, finished),
        '<img class="figure" id="funnel" src="funnel.png" alt="Counts of each stage">',
        "<h2>Distributions, and where the thresholds are</h2>",
        '<img class="figure" id="distributions" src="distributions.png" alt="Histograms">',
        *_summaries(out),
        "<h2>What was kept and dropped</h2>",
        *_image_examples(out, finished),
        *_sentence_examples(finished),
        *_duplicate_examples(out, finished),
        *_pair_examples(out),
        _problems(finished),
        _times(finished),
    ]
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f"<title>RealSyn: funnel</title><style>{STYLE}</style></head><body>"
        f"{''.join(body)}</body></html>"
    )
    with atomic_write(folder / "index.html", "w") as file:
        file.write(page)
    return folder / "index.html"


def thresholds(out: Path, settings: Any) -> dict[str, list[float]]:
    """Where each distribution is cut."""
    sentences = settings.sentences
    found = {
        "shorter side": [float(settings.images.min_side)],
        "aspect": [settings.images.max_aspect],
        "words": [float(sentences.min_words), float(sentences.max_words)],
        "entropy": [sentences.min_entropy],
    }
    if sentences.perplexity_mode == "absolute":
        found["perplexity"] = [sentences.min_perplexity, sentences.max_perplexity]
    for kind in ("images", "sentences"):
        summary = _read(out / f"filter/{kind}_duplicates/join/summary.json")
        if summary.get("tau", 2.0) <= 1:
            found[f"cosine of similar {kind}"] = [summary["tau"]]
    band = _read(out / "balance/band/summary.json")
    if band:
        found["cosine of image and synthetic text"] = [band["low"], band["high"]]
    return found


def _read(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}


def _row(cells: Iterable[Any], tag: str = "td") -> str:
    return "<tr>" + "".join(f"<{tag}>{cell}</{tag}>" for cell in cells) + "</tr>"


def _funnel_table(levels: Sequence[Level], finished: Mapping[str, Finished]) -> str:
    documents = finished["extract/pages"].stats.counts
    intro = (
        f"<p>{documents.get('documents', 0):,} documents, "
        f"{documents.get('documents held out', 0):,} of them held out for evaluation; "
        f"{documents.get('broken documents', 0):,} could not be read. Images are references until "
        "copies are dropped. The paper's shares are those of arXiv 2502.13512 on 118M web "
        "documents.</p>"
    )
    header = ["stage", "images", "dropped", "paper", "sentences", "dropped", "paper", "reasons"]
    rows = [_row(header, "th")]
    before: dict[str, int] = {}
    for level in levels:
        cells: list[str] = [html.escape(level.stage)]
        paper = PAPER.get(level.stage, (None, None))
        numbers = {"images": level.images, "sentences": level.sentences}
        for (kind, number), share in zip(numbers.items(), paper, strict=True):
            dropped = ""
            if number is not None and level.stage != "retrieval":
                if before.get(kind):
                    dropped = f"{1 - number / before[kind]:.1%}"
                before[kind] = number
            known = f"{number:,}" if number is not None else ""
            cells += [known, dropped, f"{share:.1%}" if share is not None else ""]
        said = [f"{kind}: {html.escape(why)} {n:,}" for kind, why, n in level.reasons]
        row = _row(cells).removesuffix("</tr>")
        rows.append(f'{row}<td class="text">{"<br>".join(said)}</td></tr>')
    return f'{intro}<table id="funnel-table">{"".join(rows)}</table>'


def _summaries(out: Path) -> list[str]:
    found = []
    for name, title in SUMMARIES.items():
        summary = _read(out / name / "summary.json")
        if summary:
            rows = []
            for key, value in summary.items():
                shown = value
                if isinstance(value, dict):
                    shown = ", ".join(f"{k} {v:.3f}" for k, v in value.items())
                elif isinstance(value, float):
                    shown = f"{value:.4g}"
                    if key == "tau" and value > 1:
                        shown = "off: copies and look-alikes alone reach the target"
                rows.append(_row([html.escape(key), html.escape(str(shown))]))
            found.append(f"<h2>{title}</h2><table>{''.join(rows)}</table>")
    return found


def thumbnail(data: bytes) -> str:
    """A small picture as an address that a page may hold."""
    image = decode_image(data)
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _picture(data: bytes | None) -> str:
    if data is None:
        return ""
    try:
        return f'<img src="{thumbnail(data)}" alt="">'
    except ValueError:
        return ""


def _section(title: str, cards: Sequence[str]) -> list[str]:
    if not cards:
        return []
    name = html.escape(title)
    return [
        f'<details><summary>{name}</summary><div class="cards">{"".join(cards)}</div></details>'
    ]


def _by_reason(examples: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    found: dict[str, list[Mapping[str, Any]]] = {}
    for example in examples:
        found.setdefault(str(example["reason"]), []).append(example)
    return found


def _image_examples(out: Path, finished: Mapping[str, Finished]) -> list[str]:
    if "filter/quality" not in finished:
        return []
    sections = []
    examples = finished["filter/quality"].stats.examples.get("images", [])
    bytes_of = _bytes_by_id(out, examples)
    for reason, members in _by_reason(examples).items():
        cards = [
            f'<div class="card">{_picture(bytes_of.get(str(example["id"])))}<br>'
            f"{html.escape(str(example['source']))}<br>"
            f"{example['width']} x {example['height']}</div>"
            for example in members
        ]
        sections += _section(f"images, {reason}", cards)
    return sections


def _bytes_by_id(out: Path, examples: Sequence[Mapping[str, Any]]) -> dict[str, bytes]:
    """The bytes of images of which the shard is known."""
    found: dict[str, bytes] = {}
    for shard in sorted({int(example["shard"]) for example in examples}):
        ids = {str(e["id"]) for e in examples if e["shard"] == shard}
        table = read_table(part(out / "extract/pages", "images", shard), ["id", "sha256"])
        wanted = {
            digest: name
            for name, digest in zip(
                table["id"].to_pylist(), table["sha256"].to_pylist(), strict=True
            )
            if name in ids and digest is not None
        }
        stored = read_table(part(out / "extract/pages", "bytes", shard))
        for place, digest in enumerate(stored["sha256"].to_pylist()):
            if digest in wanted:
                found[wanted[digest]] = stored["image"][place].as_py()
    return found


def _sentence_examples(finished: Mapping[str, Finished]) -> list[str]:
    sections = []
    for step in ("filter/quality", "filter/meaning", "filter/perplexity"):
        if step not in finished:
            continue
        examples = finished[step].stats.examples.get("sentences", [])
        for reason, members in _by_reason(examples).items():
            cards = [
                f'<div class="card wide">{html.escape(str(example["text"]))}'
                f'<span class="quiet">{html.escape(str(example["document"]))}</span></div>'
                for example in members
            ]
            sections += _section(f"sentences, {step.removeprefix('filter/')}: {reason}", cards)
    return sections


def _duplicate_examples(out: Path, finished: Mapping[str, Finished]) -> list[str]:
    sections = []
    for kind in ("images", "sentences"):
        name = f"filter/{kind}_duplicates/join"
        if name not in finished:
            continue
        cards = []
        for example in finished[name].stats.examples.get(f"duplicate {kind}", []):
            pictures = ["", ""]
            if kind == "images":
                places = [("block", "row"), ("kept_block", "kept_row")]
                pictures = [_picture(_stored(out, example[b], example[r])) for b, r in places]
            column = "source" if kind == "images" else "text"
            dropped, kept = html.escape(str(example[column])), html.escape(str(example["kept"]))
            cards.append(
                f'<div class="card wide"><div class="reason">{pictures[0]} {dropped}</div>'
                f'<div class="kept">{pictures[1]} {kept}</div></div>'
            )
        sections += _section(f"{kind}, duplicates (red) and what stays for them (green)", cards)
    return sections


def _stored(out: Path, block: int, row: int) -> bytes:
    table = read_table(part(out / "filter/blocks", "images", block), ["image"])
    return bytes(table["image"][row].as_py())


def _pair_examples(out: Path) -> list[str]:
    if not (out / "pairs" / "_SUCCESS").exists():
        return []
    files = sorted((out / "pairs").glob("part-*.parquet"))
    if not files:
        return []
    table = read_table(files[0])
    chosen = take_rows(table, range(0, len(table), max(1, len(table) // 16)))
    cards = []
    for pair in chosen.to_pylist():
        lines = []
        labels = [f"real {k + 1}" for k in range(len(pair["texts"]) - 1)]
        labels.append(f"synthetic ({pair['synthetic'] or 'none'})")
        for label, text, score in zip(labels, pair["texts"], pair["scores"], strict=True):
            if text:
                lines.append(f"<b>{html.escape(label)}</b> {score:.2f} {html.escape(text)}")
        cards.append(
            f'<div class="card wide">{_picture(pair["image"])}<div>{"<br>".join(lines)}<br>'
            f'<span class="quiet">{html.escape(pair["source"])}</span></div></div>'
        )
    return _section("pairs", cards)


def _problems(finished: Mapping[str, Finished]) -> str:
    lines = [line for step in finished.values() for line in step.stats.problems]
    if not lines:
        return ""
    items = "".join(f"<li>{html.escape(line)}</li>" for line in lines)
    return f"<details><summary>What could not be used</summary><ul>{items}</ul></details>"


def _times(finished: Mapping[str, Finished]) -> str:
    rows = [_row([html.escape(n), f"{f.seconds:.1f} s"]) for n, f in finished.items()]
    return f"<details><summary>Work of each step</summary><table>{''.join(rows)}</table></details>"
