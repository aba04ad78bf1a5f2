"""OBELICS' Parquet: lists of images and texts, in all forms that images come in."""

import functools
import io
import json
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from tenfold.datamodules.realsyn import BrokenDocument, ObelicsParquet, Picture


def png(colour="red") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(buffer, "PNG")
    return buffer.getvalue()


def write(path, rows, kind=None, **columns) -> str:
    images = pa.array([row[0] for row in rows], pa.list_(kind) if kind else None)
    table = {"images": images, "texts": pa.array([row[1] for row in rows], pa.list_(pa.string()))}
    pq.write_table(pa.table(table | columns), path, row_group_size=2)
    return str(path)


def read(reader, size=10) -> list:
    return [document for unit in reader.units(size) for document in reader.read(unit)]


def test_images_and_texts_come_in_order_with_alt_texts(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    known = json.dumps([{"alt_text": " a  cat "}, None, {"alt_text": None}, {}])
    rows = [(["a.png", None, "http://x/b.png", "../c"], [None, "One.\n\nTwo.", None, None])]
    path = write(tmp_path / "docs.parquet", rows, metadata=[known], doc_id=["seven"])
    (document,) = read(ObelicsParquet(path, image_folder=str(tmp_path)))
    assert document.id == "docs/seven"
    assert document.items == [
        Picture("a.png", tmp_path / "a.png", alt="a cat"),
        "One.",
        "Two.",
        Picture("http://x/b.png"),
        Picture("../c"),
    ]


def test_lists_that_do_not_match_are_named_and_the_others_read(tmp_path):
    rows = [(["a"], [None, "x"]), (["a"], ["x"]), ([None], ["fine"]), (None, None)]
    path = write(tmp_path / "d.parquet", rows, pa.string(), metadata=["no json"] * 4)
    first, second, third, fourth = read(ObelicsParquet(path))
    assert first == BrokenDocument("d/d:00000000", "1 images and 2 texts: not of one length")
    assert second == BrokenDocument("d/d:00000001", "an image and a text at place 0")
    assert third.items == ["fine"]
    assert fourth.items == []


def test_bytes_and_structs_of_datasets_are_images_themselves(tmp_path):
    path = write(tmp_path / "b.parquet", [([png(), None], [None, "x"])], pa.binary())
    (document,) = read(ObelicsParquet(path))
    assert document.items[0].read(10_000) == png()
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rows = [([{"bytes": png("blue"), "path": "blue.png"}, None], [None, "x"])]
    (document,) = read(ObelicsParquet(write(tmp_path / "s.parquet", rows, struct)))
    assert document.items[0] == Picture("blue.png", data=png("blue"))


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_any_division_gives_the_same_documents(tmp_path, size):
    folder = tmp_path / "many"
    folder.mkdir()
    for number, rows in enumerate((5, 3)):
        texts = [([None], [f"text {number} {row}"]) for row in range(rows)]
        write(folder / f"{number}.parquet", texts, pa.string())
    reader = ObelicsParquet(str(folder))
    assert [d.id for d in read(reader, size)] == [
        *(f"many/0:{row:08d}" for row in range(5)),
        *(f"many/1:{row:08d}" for row in range(3)),
    ]
    assert [d.items for d in read(reader, size)] == [d.items for d in read(reader, 100)]


def test_images_are_fetched_when_asked_and_those_that_are_gone_stay_addresses(tmp_path):
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "a.png").write_bytes(png())
    handler = functools.partial(SimpleHTTPRequestHandler, directory=str(tmp_path / "site"))
    handler.log_message = lambda *_: None
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        base = f"http://127.0.0.1:{server.server_port}"
        images = [f"{base}/a.png", f"{base}/gone.png", "file:///etc/hostname", f"{base}/a.png"]
        path = write(tmp_path / "d.parquet", [(images, [None] * 4)])
        (document,) = read(ObelicsParquet(path, download=True))
        (tiny,) = read(ObelicsParquet(path, download=True, max_bytes=10))
        (far,) = read(ObelicsParquet(path))
    finally:
        server.shutdown()
    assert [p.data for p in document.items] == [png(), None, None, png()]
    assert [p.data for p in tiny.items] == [None] * 4
    assert [p.data for p in far.items] == [None] * 4


def test_other_files_are_one_error(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"no")
    with pytest.raises(ValueError, match="is no Parquet file"):
        ObelicsParquet(str(tmp_path)).units(1)
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="has no column images or texts"):
        ObelicsParquet(str(tmp_path)).units(1)
