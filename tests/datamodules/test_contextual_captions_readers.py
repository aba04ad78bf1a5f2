"""Pages of all formats: what is read, what is refused and named, what comes back."""

import gzip
import json
import pickle
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tenfold.datamodules.contextual_captions import (
    CnxmlPages,
    ContextualCaptionDataModule,
    CtrlCICFiles,
    HtmlPages,
    JsonPages,
    Page,
    PageExamples,
    PageFigure,
    PageSection,
    WikiWeb2MPages,
    write_pages,
    write_wikiweb2m,
)
from tenfold.datamodules.contextual_captions.cnxml import read_cnxml
from tenfold.datamodules.contextual_captions.html import read_html
from tenfold.datamodules.contextual_captions.pages import split_credit
from tenfold.datamodules.contextual_captions.phrases import (
    key_phrases,
    sample_highlights,
    shared_words,
)
from tenfold.datamodules.contextual_captions.tfrecord import (
    read_records,
    sequence_example,
    write_records,
)
from tfrecord import TFRecordWriter, example_pb2, tfrecord_iterator

SPHINX = """
<!DOCTYPE html><html><head><title>Cells &#8212; Biology</title></head><body>
<nav><p>Home</p></nav>
<section id="cells"><h1>Cells<a class="headerlink" href="#cells">¶</a></h1>
<p>All living things have <em>cells</em>.</p>
<section id="wall"><h2>The wall<a class="headerlink" href="#wall">¶</a></h2>
<p>Plant cells have a wall.</p><ul><li><p>It is made of cellulose.</p></li></ul>
<figure class="align-default"><a href="x"><img alt="a wall" src="../img/a%20wall.png"/></a>
<figcaption><p><span class="caption-number">Fig. 2 </span><span class="caption-text">A cell wall
under the <em>microscope</em>.</span><a href="#id1">¶</a></p></figcaption></figure>
<figure><img src="https://elsewhere/b.png"><figcaption>Elsewhere</figcaption></figure>
<figure><img src="c.svg"><figcaption>A drawing</figcaption></figure>
<script>var x = "<p>no text</p>";</script>
</section></section></body></html>
"""
DOCBOOK = """
<html><head><meta charset="ISO-8859-1"><title>2.1. Layers</title></head><body>
<div class="sect1"><div class="titlepage"><h2 class="title"><a name="l"></a>2.1. Layers</h2></div>
<p>An image has layers, na\xefve or not.</p>
<div class="figure"><a name="f"></a><p class="title"><b>Figure 2.1. The layers dialog</b></p>
<div class="figure-contents"><div class="mediaobject"><img src="images/layers.png" alt="The layers
dialog"></div></div></div>
<div class="sect2"><h3 class="title">2.1.1. Masks</h3><p>A mask hides.</p></div>
</div></body></html>
"""
MODULE = """<document xmlns="http://cnx.rice.edu/cnxml" xmlns:m="http://www.w3.org/1998/Math/MathML">
<title>The Cell</title><metadata><md:title xmlns:md="http://cnx.rice.edu/mdml">no</md:title></metadata>
<content><para>Cells are <term>small</term>.</para>
<section><title>Walls</title><para>Plants have walls.</para>
<note><para>They are stiff.</para></note>
<list><item>cellulose</item></list>
<figure id="f"><title>A wall</title><media alt="green boxes"><image src="../../media/wall.jpg"
mime-type="image/jpeg"/></media><caption>A cell wall. (credit: somebody / CC BY)</caption></figure>
<figure><media alt=""><image src="../../media/x.jpg"/></media></figure>
<exercise><problem><para>What is a wall?</para></problem></exercise>
</section></content></document>
"""


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TENFOLD_CACHE", str(tmp_path / "cache"))


def save_image(path, colour="red"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (20, 10), colour).save(path)


# HTML and CNXML


def test_sphinx_pages():
    title, sections = read_html(SPHINX.encode())
    assert title == "Cells — Biology"
    assert [(s.title, s.text) for s in sections] == [
        ("Cells", "All living things have cells."),
        ("The wall", "Plant cells have a wall. It is made of cellulose."),
    ]
    figure = PageFigure("../img/a wall.png", "A cell wall under the microscope.", "a wall")
    assert sections[1].figures == (figure,)


def test_docbook_pages_in_their_own_encoding():
    title, sections = read_html(DOCBOOK.encode("latin-1"))
    assert title == "2.1. Layers"
    assert sections[0].text == "An image has layers, naïve or not."
    (figure,) = sections[0].figures
    assert (figure.path, figure.caption) == ("images/layers.png", "The layers dialog")
    assert figure.alt == ""  # the caption again
    assert sections[1].title == "2.1.1. Masks"


def test_pages_without_wrappers_and_broken_ones():
    title, sections = read_html(
        b"<h1>Mars<p>A planet.<div class=thumb><img src=m.jpg><div class=thumbcaption>Seen "
        b"(credit: NASA)</div></div><h2>Moons</h2><p>Two."
    )
    assert title == "Mars"
    assert [s.title for s in sections] == ["Mars", "Moons"]
    assert sections[0].figures[0].credit == "(credit: NASA)"
    for nothing in (b"", b"   ", b"<!-- -->"):
        with pytest.raises(ValueError, match="no HTML"):
            read_html(nothing)
    deep = b"<div>" * 5000 + b"<p>deep</p>" + b"</div>" * 5000
    assert isinstance(read_html(deep)[1], list)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=300), st.integers(0, 1000))
def test_any_bytes_are_a_page_or_a_named_error(noise, place):
    data = SPHINX.encode()[:place] + noise + SPHINX.encode()[place:]
    found = page_or_error(data)
    if isinstance(found, ValueError):
        assert str(found).startswith("page: no HTML")
    else:
        assert isinstance(found[0], str)
        assert all(figure.caption for section in found[1] for figure in section.figures)


def page_or_error(data):
    try:
        return read_html(data, "page")
    except ValueError as error:
        return error


def test_a_folder_of_pages(tmp_path):
    folder = tmp_path / "docs"
    (folder / "guide").mkdir(parents=True)
    (folder / "guide" / "cells.html").write_text(SPHINX)
    (folder / "empty.html").write_text("")
    save_image(folder / "img" / "a wall.png")
    source = HtmlPages(str(folder))
    found = [*source.pages()]
    assert isinstance(found[0], ValueError)
    assert "empty.html" in str(found[0])
    assert found[1].name == "guide/cells.html"
    figure = found[1].sections[1].figures[0]
    assert figure.path == "img/a wall.png"
    assert source.open_image(figure.path).size == (20, 10)
    single = HtmlPages(str(folder / "guide" / "cells.html"))
    (page,) = single.pages()
    assert page.name == "cells.html"
    with pytest.raises(ValueError, match="cannot be read"):
        single.open_image("nothing.png")
    with pytest.raises(ValueError, match="there is no folder"):
        HtmlPages(str(tmp_path / "nothing"))
    before = source.identity
    (folder / "empty.html").write_text("<p>more")
    assert source.identity != before


def test_openstax_modules(tmp_path):
    page = read_cnxml(MODULE.encode(), "m1")
    assert page.title == "The Cell"
    assert [(s.title, s.text) for s in page.sections] == [
        ("The Cell", "Cells are small."),
        ("Walls", "Plants have walls. They are stiff. cellulose"),
    ]
    figure = PageFigure(
        "media/wall.jpg", "A cell wall.", "green boxes", "(credit: somebody / CC BY)"
    )
    assert page.sections[1].figures == (figure,)
    folder = tmp_path / "book"
    (folder / "modules" / "m1").mkdir(parents=True)
    (folder / "modules" / "m1" / "index.cnxml").write_text(MODULE)
    (folder / "modules" / "m2").mkdir()
    (folder / "modules" / "m2" / "index.cnxml").write_text(MODULE[:300])
    good, bad = CnxmlPages(str(folder)).pages()
    assert good == page
    assert "m2/index.cnxml: no XML" in str(bad)
    with pytest.raises(ValueError, match="expected a CNXML document"):
        read_cnxml(b"<a/>", "m3")
    with pytest.raises(ValueError, match=r"there is no modules/"):
        CnxmlPages(str(tmp_path))


def test_entities_of_a_module_are_not_followed(tmp_path):
    (tmp_path / "secret").write_text("secret")
    evil = f'<!DOCTYPE d [<!ENTITY x SYSTEM "file://{tmp_path}/secret">]>' + MODULE
    page = read_cnxml(evil.replace("Cells are", "&x; Cells are").encode(), "m1")
    assert "secret" not in page.sections[0].text


def test_credits_are_split_off():
    assert split_credit("A cell. (credit a: x (y); credit b: z)") == (
        "A cell.",
        "(credit a: x (y); credit b: z)",
    )
    assert split_credit("A cell (in blue).") == ("A cell (in blue).", "")


# JSON lines

words = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=12)
figures = st.builds(PageFigure, words.filter(bool), words.filter(bool), words, words, st.booleans())
sections = st.builds(PageSection, words, words, st.lists(figures, max_size=3).map(tuple))
pages = st.builds(
    Page,
    name=st.just("1"),
    title=words,
    sections=st.lists(sections, max_size=3).map(tuple),
    url=words,
    group=words,
    split=st.sampled_from(["", "train", "test"]),
)


@settings(max_examples=50, deadline=None)
@given(page=pages)
def test_pages_come_back_from_json_lines(tmp_path_factory, page):
    path = tmp_path_factory.mktemp("json") / "pages.jsonl"
    assert write_pages([page], path) == 1
    assert [*JsonPages(str(path)).pages()] == [page]


def test_lines_that_are_no_pages_are_named(tmp_path):
    lines = ['{"page_title": "a", "sections": []}', "{", '{"page_title": "a"}',
             '{"page_title": "a", "sections": [{"title": 1, "text": ""}]}', "[]"]  # fmt: skip
    with gzip.open(tmp_path / "pages.jsonl.gz", "wt") as file:
        file.write("\n\n".join(lines))
    found = [*JsonPages(str(tmp_path)).pages()]
    assert isinstance(found[0], Page)
    for number, error in zip((3, 5, 7, 9), found[1:], strict=True):
        assert f"pages.jsonl.gz:{number}: expected a page" in str(error)
    with pytest.raises(ValueError, match="there is no file"):
        JsonPages(str(tmp_path / "nothing"))


# TFRecord and WikiWeb2M


@settings(max_examples=25, deadline=None)
@given(records=st.lists(st.binary(max_size=200), max_size=8), compress=st.booleans())
def test_records_come_back(tmp_path_factory, records, compress):
    path = tmp_path_factory.mktemp("records") / "file"
    assert write_records(records, path, compress) == len(records)
    assert [*read_records(path)] == records
    kind = "gzip" if compress else None
    read = [bytes(r) for r in tfrecord_iterator(str(path), compression_type=kind)]
    assert read == records


def test_records_of_another_program_are_read(tmp_path):
    writer = TFRecordWriter(str(tmp_path / "a.tfrecord"))
    writer.write({"split": (b"train", "byte")}, {"x": ([[1, 2], []], "int")})
    writer.close()
    (record,) = read_records(tmp_path / "a.tfrecord")
    theirs = example_pb2.SequenceExample.FromString(record)
    ours = sequence_example().FromString(record)
    assert ours.SerializeToString(deterministic=True) == theirs.SerializeToString(
        deterministic=True
    )


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_a_damaged_byte_is_found(tmp_path_factory, data):
    """Wherever it is: records before stay, those after wrong data as well."""
    records = [bytes([k]) * (5 + k) for k in range(4)]
    path = tmp_path_factory.mktemp("damage") / "file.tfrecord"
    write_records(records, path, compress=False)
    content = bytearray(path.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    found = [*read_records(path)]
    (error,) = [x for x in found if isinstance(x, ValueError)]
    position = found.index(error)
    assert found[:position] == records[:position]
    assert f"file.tfrecord: record {position} at byte " in str(error)
    offset = sum(len(r) + 16 for r in records[:position])
    if place - offset < 12:
        assert "length is damaged" in str(error)
        assert len(found) == position + 1
    else:
        assert "checksum is wrong" in str(error)
        assert found[position + 1 :] == records[position + 1 :]


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_a_file_cut_short_is_named(tmp_path_factory, data):
    records = [bytes([k]) * (5 + k) for k in range(4)]
    path = tmp_path_factory.mktemp("cut") / "file"
    compress = data.draw(st.booleans())
    write_records(records, path, compress)
    content = path.read_bytes()
    path.write_bytes(content[: data.draw(st.integers(3, len(content) - 1))])
    found = [*read_records(path, verify=False)]
    whole = [x for x in found if not isinstance(x, ValueError)]
    assert whole == records[: len(whole)]
    size = sum(len(r) + 16 for r in records[: len(whole)])
    at_a_border = not compress and len(path.read_bytes()) == size
    assert at_a_border or isinstance(found[-1], ValueError)
    assert len(found) - len(whole) <= 1


def test_a_length_out_of_range_does_not_fill_memory(tmp_path):
    (tmp_path / "file").write_bytes(struct.pack("<QI", 2**62, 0) + b"abc")
    (error,) = read_records(tmp_path / "file", verify=False)
    assert "length is damaged" in str(error)


def wiki_pages():
    pictures = (
        PageFigure("a.jpg", "A wall", "green", "by x"),
        PageFigure("b.png", "B", is_sample=False),
    )
    one = PageSection("Walls", "Plants have walls.", pictures)
    return [
        Page("p0", "Cells", (PageSection("Cells", "Small."), one), "http://x/cells", split="test"),
        Page("p1", "Nothing", (PageSection("a", "b"),), "http://x/n", split="test"),
        Page("p2", "Mars", (one,), "http://x/mars", split="test"),
    ]


def test_wikiweb2m_records_come_back(tmp_path):
    path = tmp_path / "wikiweb2m-test.tfrecord.gz"
    assert write_wikiweb2m(wiki_pages(), path) == 3
    save_image(tmp_path / "images" / "test" / "2" / "a.jpg")
    source = WikiWeb2MPages(str(tmp_path))
    one, other = source.pages()  # the second record has no image
    assert (one.title, one.url, one.split) == ("Cells", "http://x/cells", "test")
    assert [s.title for s in one.sections] == ["Cells", "Walls"]
    assert one.sections[1].figures == (
        PageFigure("test/0/a.jpg", "A wall", "green", "by x"),
        PageFigure("test/0/b.png", "B", is_sample=False),
    )
    assert other.sections[0].figures[0].path == "test/2/a.jpg"
    assert source.open_image("test/2/a.jpg").size == (20, 10)
    theirs = example_pb2.SequenceExample.FromString(next(iter(read_records(path))))
    lists = theirs.feature_lists.feature_list
    assert lists["section_image_captions"].feature[1].bytes_list.value[0] == b"green, by x, A wall"
    with pytest.raises(ValueError, match=r"there is no wikiweb2m"):
        WikiWeb2MPages(str(tmp_path / "images"))


def edited_record(tmp_path, edit):
    example = example_pb2.SequenceExample.FromString(_record())
    edit(example)
    write_records([example.SerializeToString()], tmp_path / "wikiweb2m-x.tfrecord")
    return [*WikiWeb2MPages(str(tmp_path)).pages()]


def _record():
    from tenfold.datamodules.contextual_captions.wikiweb2m import record_of_page

    return record_of_page(wiki_pages()[0])


def test_a_section_without_images_may_be_unset(tmp_path):
    def unset(example):
        for name in ("section_image_url", "section_image_alt_text", "is_image_caption_sample"):
            example.feature_lists.feature_list[name].feature[0].Clear()

    (page,) = edited_record(tmp_path, unset)
    assert page.sections[0].figures == ()
    assert len(page.sections[1].figures) == 2


def test_addresses_that_repeat_or_are_no_photographs_are_left_out(tmp_path):
    def repeat(example):
        urls = example.feature_lists.feature_list["section_image_url"].feature[1].bytes_list
        urls.value[:] = [b"http://x/A%20wall.JPG?y=1", b"http://x/b.svg"]

    (page,) = edited_record(tmp_path, repeat)
    assert [f.path for f in page.sections[1].figures] == ["test/0/A wall.JPG"]


def test_lists_that_do_not_fit_are_named(tmp_path):
    def shorten(example):
        lists = example.feature_lists.feature_list
        del lists["section_image_alt_text"].feature[1].bytes_list.value[1:]

    (error,) = edited_record(tmp_path, shorten)
    assert "record 0: lists of the images of section 1 differ" in str(error)
    (error,) = edited_record(tmp_path, lambda e: e.context.feature.pop("split"))
    assert "expected split, page_title and page_url" in str(error)
    write_records([b"\xff\xff"], tmp_path / "wikiweb2m-x.tfrecord")
    (error,) = WikiWeb2MPages(str(tmp_path)).pages()
    assert "no SequenceExample" in str(error)


# Records of pages

LONG = (
    "Plant cells have a strong cell wall of cellulose. Animal cells have none, but their membranes "
    "are flexible. Fungal walls hold chitin instead."
)


def some_pages(number=60):
    section = PageSection("Walls", LONG, (
        PageFigure("a.jpg", "The walls of a plant cell are shown. It is one more sentence."),
        PageFigure("b.jpg", "Cellulose")))  # fmt: skip
    return [
        Page(str(k), f"Cells {k}", (section, PageSection("more", "text"))) for k in range(number)
    ]


def stored(tmp_path, **settings):
    write_pages(some_pages(), tmp_path / "pages.jsonl")
    for name in ("a.jpg", "b.jpg"):
        save_image(tmp_path / name)
    examples = PageExamples(JsonPages(str(tmp_path)), **settings)
    examples.prepare()
    return examples


def test_every_figure_is_a_record(tmp_path):
    examples = stored(tmp_path, val_fraction=0.2, test_fraction=0.3)
    sizes = {name: len(examples.split(name)) for name in ("train", "val", "test")}
    assert sum(sizes.values()) == 120
    assert all(sizes.values())
    groups = {n: {e.group for e in examples.split(n)} for n in sizes}
    assert not groups["train"] & groups["test"]
    assert not groups["train"] & groups["val"]
    example = examples.split("test")[0]
    assert example.other_captions == ("Cellulose",)
    assert example.other_sections == (("more", "text", ()),)
    assert example.highlights[0] == ("Plant", "cells", "wall")
    assert example.references == (example.caption, "", "", "")
    assert all(p in example.section_text for phrases in example.highlights for p in phrases)
    assert examples.split("train")[0].highlights == ()
    assert examples.image(example.image).size == (20, 10)
    again = pickle.loads(pickle.dumps(examples.split("test")))
    assert again[0] == example
    with pytest.raises(IndexError):
        again[len(again)]


def test_captions_may_be_cut_into_sentences(tmp_path):
    examples = stored(tmp_path, targets="caption_sentences", test_fraction=0.0, val_fraction=0.0)
    rows = [*examples.split("train")]
    assert len(rows) == 120
    assert rows[1].caption == "It is one more sentence."
    assert rows[0].image == rows[1].image
    assert [rows[0].id, rows[1].id] == ["1#0.0", "1#0.0.1"]


def test_phrases_of_the_text_may_be_targets_among_the_sentences_around_them(tmp_path):
    lines = [f"Sentence number {k} is a long one." for k in range(9)]
    figures = [
        {"path": name, "caption": "A long caption.", "alt": ""} for name in ("a.jpg", "b.jpg")
    ]
    sections = [
        {"title": "s", "text": " ".join(["Short one.", *lines]), "images": figures},
        {"title": "t", "text": "A section that has no figure.", "images": []},
    ]
    (tmp_path / "pages.jsonl").write_text(json.dumps({"page_title": "p", "sections": sections}))
    save_image(tmp_path / "a.jpg")
    save_image(tmp_path / "b.jpg")

    def rows():
        examples = PageExamples(
            JsonPages(str(tmp_path)), targets="text_phrases", test_fraction=0.0, val_fraction=0.0
        )
        examples.prepare()
        return [*examples.split("train")]

    found = rows()
    assert 18 < len(found) <= 27
    around = ["Short one.", *lines, ""]
    for k, line in enumerate(lines):
        context = " ".join(around[k : k + 3]).strip()
        captions = [row.caption for row in found if row.section_text == context]
        assert 1 <= len(captions) == len(set(captions)) <= 3
        for caption in captions:
            assert caption in line
            assert {"Sentence", "number", "long", str(k)} & {*caption.split()}
    assert {row.image for row in found} == {0}
    assert {row.other_captions for row in found} == {("A long caption.",)}
    assert len({len(row.caption.split()) for row in found}) > 3
    assert rows() == found


def test_what_is_missing_is_counted(tmp_path, caplog):
    lines = [*map(json.dumps, [1, 2]), ""]
    write_pages(some_pages(2), tmp_path / "pages.jsonl")
    with (tmp_path / "pages.jsonl").open("a") as file:
        file.write("\n".join(lines))
    save_image(tmp_path / "a.jpg")
    source = JsonPages(str(tmp_path))
    examples = PageExamples(source, test_fraction=0, val_fraction=0)
    examples.prepare()
    assert len(examples.split("train")) == 2
    assert "pages that cannot be read: 2, first: " in caplog.text
    assert "images that are missing: 2, first: " in caplog.text
    caplog.clear()
    PageExamples(source, test_fraction=0, val_fraction=0).prepare()
    assert not caplog.text  # made before
    black = PageExamples(source, test_fraction=0, val_fraction=0, missing_image="black")
    black.prepare()
    assert len(black.split("train")) == 4
    with pytest.raises(ValueError, match="expected a page"):
        PageExamples(source, test_fraction=0, strict=True, min_caption_words=2).prepare()
    with pytest.raises(ValueError, match="no captioned figure in JsonPages; first problem"):
        PageExamples(source, min_caption_words=90).prepare()
    with pytest.raises(ValueError, match="test_fraction"):
        PageExamples(source, test_fraction=1)


def test_pages_make_batches(tmp_path):
    data = ContextualCaptionDataModule(stored(tmp_path, test_fraction=0.5), batch_size=4)
    data.prepare_data()
    data.setup()
    batch = next(iter(data.test_dataloader()))
    assert batch["images"].shape == (4, 64)
    assert batch["highlights"][0][0] == ["Plant", "cells", "wall"]
    assert batch["pictures"][0].size == (20, 10)
    assert data.run_info()["examples"]["source"]["source"] == "JsonPages"


def test_key_phrases_are_of_the_text():
    phrases = key_phrases(LONG)
    assert "Plant cells" in phrases
    assert "strong cell wall" in phrases
    assert all(phrase in LONG for phrase in phrases)
    assert not any(a != b and a in b for a in phrases for b in phrases)
    drawn = sample_highlights(phrases, LONG, 2, 2, seed=3)
    assert drawn == sample_highlights(phrases, LONG, 2, 2, seed=3)
    assert [len(group) for group in drawn] == [2, 2]
    for first, second in drawn:
        assert LONG.find(first) < LONG.find(second)
    assert sample_highlights(phrases, LONG, 9, 2, seed=3) == []
    assert shared_words("Walls of a planted cell.", LONG, 2) == ("Plant", "cells")


# The authors' files


def authors_files(root: Path) -> Path:
    for split in ("train", "test"):
        folder = root / "extracted_texts" / split
        folder.mkdir(parents=True)
        page = {
            "page_url": "http://x",
            "page_title": "Cells",
            "section_dict": {0: ("Cells", "Small."), 3: ("Walls", "Plants have walls.")},
            "image_captions": {3: {0: "A wall ", 1: "B"}},
        }
        (folder / "7.pkl").write_bytes(pickle.dumps(page))
        rows = ["sample_idx,img_path,img_idx,sec_idx,exist", f"7,{split}/7/a.jpg,0,3,1"]
        rows += [f"7,{split}/7/lost.jpg,1,3,0", f"7,{split}/7/b.jpg,1,3,1"]
        (root / f"{split}_image_dict_v7.csv").write_text("\n".join(rows))
        features = root / "extracted_image_features"
        features.mkdir(exist_ok=True)
        table = torch.arange(8.0).reshape(2, 4) + (10 if split == "test" else 0)
        torch.save(table, features / f"{split}_image_feature_matrix.pt")
    (root / "highlights.json").write_text('{"1": [["Plants"], ["walls", "have"]]}')
    return root


def test_the_authors_files_are_read(tmp_path):
    root = authors_files(tmp_path / "data")
    files = CtrlCICFiles(str(root), str(root / "highlights.json"))
    data = ContextualCaptionDataModule(files, batch_size=1)
    data.prepare_data()
    data.setup()
    train = files.split("train")
    assert [e.caption for e in train] == ["A wall", "B"]
    assert train[0].other_captions == ("B",)
    assert train[0].section_title == "Walls"
    (batch,) = data.test_dataloader()
    assert batch["captions"] == ["B"]
    assert batch["images"].tolist() == [[14, 15, 16, 17]]
    assert batch["highlights"] == [[["Plants"], ["walls", "have"]]]
    assert batch["pictures"] == [None]
    save_image(root / "images" / "test" / "7" / "b.jpg")
    (batch,) = data.test_dataloader()
    assert batch["pictures"][0].size == (20, 10)


class Evil:
    def __reduce__(self):
        return (Path.touch, (Path("evil"),))


def test_a_pickle_that_wants_to_run_something_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    root = authors_files(tmp_path / "data")
    (root / "extracted_texts" / "train" / "7.pkl").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(
        ValueError, match=r"7.pkl cannot be read: it wants .*, which is not run here"
    ):
        CtrlCICFiles(str(root)).split("train")[0]
    assert not Path("evil").exists()


def test_tables_that_do_not_fit_are_named(tmp_path):
    root = authors_files(tmp_path / "data")
    torch.save(
        torch.zeros(1, 4), root / "extracted_image_features" / "test_image_feature_matrix.pt"
    )
    with pytest.raises(ValueError, match="test has 1 features, not 2"):
        CtrlCICFiles(str(root)).split("test")
    (root / "extracted_image_features" / "test_image_feature_matrix.pt").unlink()
    with pytest.raises(ValueError, match="no feature matrix for test"):
        CtrlCICFiles(str(root)).split("test")
    with pytest.raises(ValueError, match="there is no folder"):
        CtrlCICFiles(str(tmp_path / "nothing"))
