"""Coloured squares with texts about their colour, in the formats that pairs come in."""

import io
import json
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

COLOURS = {
    "red": (220, 30, 30),
    "green": (30, 200, 40),
    "blue": (30, 50, 220),
    "yellow": (230, 220, 40),
    "black": (10, 10, 10),
    "white": (245, 245, 245),
    "purple": (150, 40, 190),
    "orange": (240, 140, 20),
}

IMAGE_TOWER = {
    "model_type": "clip_vision_model",
    "image_size": 16,
    "patch_size": 8,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
TEXT_TOWER = {
    "model_type": "clip_text_model",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
SMALL = {
    "image_tower": IMAGE_TOWER,
    "text_tower": TEXT_TOWER,
    "embed_dim": 16,
    "tokenizer": "words",
    "vocab_size": 64,
    "text_length": 8,
}


def picture(colour, size=(20, 24), kind="PNG"):
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, kind)
    return buffer.getvalue()


def records(count, first=0):
    """Of all colours in turn, each a little darker than the one before."""
    names = list(COLOURS)
    made = []
    for number in range(first, first + count):
        name = names[number % len(names)]
        shade = 1 - 0.02 * (number // len(names) % 8)
        made.append(
            {
                "id": f"{number:04}",
                "image": picture(tuple(int(c * shade) for c in COLOURS[name])),
                "texts": [f"a {name} square", f"this one is {name}", f"{name}", f"painted {name}"],
                "document": f"d{number // 4}",
                "class": name,
                "alt": f"a {name} square number {number}",
            }
        )
    return made


def write_parquet(path: Path, rows, **kwargs) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path, **kwargs)
    return path


def write_tar(path: Path, rows, image_suffix="jpg") -> Path:
    """As img2dataset with RealSyn's columns: key.jpg, key.txt, key.json."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as file:
        for row in rows:
            rest = {f"text{k + 1}": text for k, text in enumerate(row["texts"]) if 0 < k < 3}
            rest |= {"syn_text": row["texts"][3], "width": 20}
            members = {image_suffix: row["image"], "txt": row["texts"][0].encode()}
            members["json"] = json.dumps(rest).encode()
            for suffix, content in members.items():
                if content is None:
                    continue
                member = tarfile.TarInfo(f"{row['id']}.{suffix}")
                member.size = len(content)
                file.addfile(member, io.BytesIO(content))
    return path
