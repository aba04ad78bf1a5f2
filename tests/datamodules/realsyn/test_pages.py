"""Reading of documents: HTML, Markdown."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tenfold.datamodules.realsyn import BrokenDocument, HtmlFolder, MarkdownFolder, Picture
from tenfold.datamodules.realsyn.pages import read_html


def items(page: str) -> list:
    return list(read_html(page.encode()))


def test_texts_and_images_come_in_the_order_of_the_page():
    page = "<p>One <b>and</b>\n a half.</p><img src='a.png' alt=' A  picture '><div>Two</div>"
    assert items(page) == ["One and a half.", ("a.png", "A picture"), "Two"]


def test_inline_images_end_a_paragraph_and_blocks_never_join():
    page = "<ul><li>first<li>second</ul>before <img src=x.png> after<br>below"
    assert items(page) == ["first", "second", "before", ("x.png", ""), "after", "below"]


def test_scripts_styles_navigation_and_code_are_left_out_but_not_what_follows_them():
    page = "<nav>menu <img src=logo.png></nav>a<script>1<2</script>b<!-- c --><pre>code</pre><p>d"
    assert items(page) == ["ab", "d"]


def test_the_largest_of_a_srcset_and_lazy_sources_are_found_and_embedded_data_are_not():
    assert items('<img srcset="a.png 1x, b.png 2x">') == [("b.png", "")]
    assert items('<img src="data:image/gif;base64,R0" data-src="c.png">') == [("c.png", "")]
    assert items('<picture><source srcset="d.webp 800w, e.webp 400w"><img></picture>') == [
        ("d.webp", "")
    ]


def test_pages_of_any_encoding_and_xhtml_are_read():
    latin = '<meta charset="iso-8859-1"><p>caf\xe9'.encode("latin-1")
    assert list(read_html(latin)) == ["caf\xe9"]
    xhtml = '<?xml version="1.0" encoding="utf-8"?><html><body><p>caf\xe9</p></body></html>'
    assert list(read_html(xhtml.encode())) == ["caf\xe9"]
    assert list(read_html(b'<meta charset="no-such"><p>x')) == ["x"]


def test_pages_of_a_hundred_thousand_open_tags_do_not_exhaust_the_stack():
    assert items("<b>" * 100_000 + "end")[-1:] == ["end"] or items("<b>" * 100_000 + "end") == []


@given(st.binary(max_size=200))
def test_bytes_of_any_kind_give_items_or_one_error(data):
    try:
        found = list(read_html(b"<p>" + data))
    except ValueError:
        return
    assert all(isinstance(item, str | tuple) for item in found)


@given(st.lists(st.text(st.characters(codec="ascii", categories=("L",)), min_size=1), min_size=1))
def test_each_paragraph_comes_back(paragraphs):
    page = "".join(f"<p>{text}</p>" for text in paragraphs)
    assert items(page) == paragraphs


def test_files_are_found_by_name_escape_and_query_but_never_outside_of_the_folder(tmp_path):
    root = tmp_path / "site"
    (root / "sub").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(root / "a b.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "secret.png")
    (root / "sub" / "page.HTML").write_text(
        '<img src="../a%20b.png?v=1#x"><img src="/a b.png"><img src="../../secret.png">'
        '<img src="//cdn/a b.png"><img src="http://x/y.png" alt="far">'
    )
    reader = HtmlFolder(str(root))
    (document,) = reader.read(reader.units(10)[0])
    assert document.id == "site/sub/page.HTML"
    found = document.items
    assert [p.source for p in found[:2]] == ["site/a b.png", "site/a b.png"]
    assert all(p.path == root / "a b.png" for p in found[:1])
    assert [p.path for p in found[2:]] == [None, None, None]
    assert found[-1] == Picture("http://x/y.png", alt="far")
    with pytest.raises(ValueError, match="the image is not here"):
        found[-1].read(100)
    with pytest.raises(ValueError, match="more than 3 bytes"):
        found[0].read(3)


def test_units_are_the_sorted_pages_whatever_their_size(tmp_path):
    for name in ("b/2.html", "a.html", "b/1.htm", ".hidden/x.html"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("<p>x")
    reader = HtmlFolder(str(tmp_path), name="docs")
    names = ["a.html", "b/1.htm", "b/2.html"]
    for size in (1, 2, 3):
        assert list(itertools.chain(*reader.units(size))) == names
    before = reader.identity
    (tmp_path / "a.html").write_text("<p>xy")
    assert reader.identity != before


def test_an_empty_page_is_named_and_a_folder_without_pages_refused(tmp_path):
    with pytest.raises(ValueError, match="no folder"):
        HtmlFolder(str(tmp_path / "none")).units(1)
    with pytest.raises(ValueError, match=r"no \.html"):
        HtmlFolder(str(tmp_path)).units(1)
    (tmp_path / "a.html").write_text("  ")
    (broken,) = HtmlFolder(str(tmp_path), name="d").read(["a.html"])
    assert broken == BrokenDocument("d/a.html", "the page is empty")


def test_markdown_is_read_with_tables_and_the_html_in_it(tmp_path):
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "p.png")
    (tmp_path / "a.md").write_text(
        "# Title\n\nSome *text* here.\n\n![alt](p.png)\n\n| a | b |\n|---|---|\n| c | d |\n\n"
        '<img src="p.png">\n\n```\ncode\n```\n'
    )
    (document,) = MarkdownFolder(str(tmp_path), name="m").read(["a.md"])
    texts = [item for item in document.items if isinstance(item, str)]
    assert texts == ["Title", "Some text here.", "a", "b", "c", "d"]
    pictures = [item for item in document.items if isinstance(item, Picture)]
    assert [p.path for p in pictures] == [tmp_path / "p.png"] * 2
    assert pictures[0].alt == "alt"
