"""Pages made of docstrings: their text without markup, their plots as images."""

import sys

import numpy as np
import pytest
from tenfold.datamodules.realsyn import BrokenDocument, DocstringPages, Picture
from tenfold.datamodules.realsyn.docstrings import paragraphs_of
from tenfold.datamodules.realsyn.images import decode_image

SOURCE = '''
__all__ = ["curve", "fails", "plain", "wants_the_network"]

def curve():
    """Draw a curve.

    See :func:`other <there>` and ``code`` [1]_.

    Examples
    --------
    It grows at random:

    >>> import numpy as np
    >>> import matplotlib.pyplot as plt
    >>> rng = np.random.default_rng()
    >>> plt.plot(rng.random(9))
    >>> plt.show()

    Then it falls:

    >>> plt.plot([2, 1])
    >>> other = plt.figure()
    >>> plt.show()
    """

def fails():
    """Break.

    >>> import matplotlib.pyplot as plt
    >>> plt.plot([1, 2])
    >>> raise RuntimeError("no")
    >>> plt.show()

    Still text.
    """

def plain():
    """Say nothing new."""

def wants_the_network():
    """Fetch.

    >>> import matplotlib.pyplot as plt
    >>> from package import datasets
    >>> plt.plot([1])
    >>> plt.show()
    """
'''


@pytest.fixture
def reader(tmp_path, monkeypatch) -> DocstringPages:
    (tmp_path / "drawn_docs.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    yield DocstringPages(["drawn_docs"], name="docs")
    sys.modules.pop("drawn_docs", None)


def pages(reader: DocstringPages) -> dict:
    return {page.id: page.items for unit in reader.units(3) for page in reader.read(unit)}


def test_figures_stand_where_they_are_shown(reader):
    items = pages(reader)["docs/drawn_docs.curve"]
    kinds = ["P" if isinstance(item, Picture) else item for item in items]
    assert kinds == [
        "Draw a curve.",
        "See other and code.",
        "Examples",
        "It grows at random:",
        "P",
        "Then it falls:",
        "P",
        "P",
    ]
    first = next(item for item in items if isinstance(item, Picture))
    assert first.source == "docs/drawn_docs.curve-1.png"
    assert np.asarray(decode_image(first.data)).std() > 5


def test_figures_are_the_same_bytes_each_time_though_examples_draw_random_numbers(reader):
    assert pages(reader) == pages(reader)
    assert np.random.default_rng().random() != np.random.default_rng().random()


def test_examples_that_fail_or_want_the_network_end_there(reader):
    found = pages(reader)
    assert found["docs/drawn_docs.fails"] == ["Break.", "Still text."]
    assert found["docs/drawn_docs.wants_the_network"] == ["Fetch."]
    assert found["docs/drawn_docs.plain"] == ["Say nothing new."]


def test_modules_that_are_not_there_are_one_error():
    with pytest.raises(ValueError, match="no module 'no_such_module' is installed"):
        DocstringPages(["no_such_module"]).units(1)
    with pytest.raises(ValueError, match="needs the names of modules"):
        DocstringPages([])
    (broken,) = DocstringPages(["json"], name="d").read(["json.nothing"])
    assert isinstance(broken, BrokenDocument)


def test_markup_is_taken_off():
    text = "The `~a.b` of :math:`x^2` and \\alpha [2]_.\n\n.. note:: hidden\n\n----\n\n>>> code"
    assert list(paragraphs_of(text)) == ["The ~a.b of x^2 and alpha."]
