"""Documents that every machine has: docstrings of installed packages, with the plots they draw.

The online manuals of scipy and others are made the same way: an example in a docstring is run, and
what it draws stands below it.
"""

import contextlib
import doctest
import importlib
import inspect
import io
import pkgutil
import re
import warnings
from collections.abc import Iterator, Sequence
from typing import Any
from unittest import mock

import numpy as np

from .documents import BrokenDocument, Document, DocumentReader, Picture

DPI = 80
MOST_FIGURES = 8
# Examples that want a file of the network, or a window.
_OUTSIDE = re.compile(r"datasets\b|urlopen|requests\.|plt\.pause|animation")
_ROLE = re.compile(r":\w+(?::\w+)*:`~?([^`<]*?)(?:\s*<[^>]*>)?`")
_LITERAL = re.compile(r"``?([^`]+)``?")
_REFERENCE = re.compile(r"\s*\[[\w.]+\]_")
_UNDERLINE = re.compile(r"^[ ]*[-=~^*]{3,}[ ]*$", re.MULTILINE)


class DocstringPages(DocumentReader):
    """A page for each documented class and function of installed packages.

    Examples that plot are run, with the random numbers that they draw from seed 0, and each figure
    becomes an image of the page; an example that fails, or wants the network, ends there. The
    packages are imported and their examples executed: name packages that you trust.

    Args:
        modules: Names of packages or modules, such as "scipy.signal".
        name: Put before the ids of documents and the sources of images.
        run_examples: Whether figures are drawn; without them there are no images.
    """

    def __init__(
        self, modules: Sequence[str], name: str = "docstrings", run_examples: bool = True
    ) -> None:
        if not modules:
            raise ValueError("documents: DocstringPages needs the names of modules")
        self.modules = list(modules)
        self.name = name
        self.run_examples = run_examples

    @property
    def identity(self) -> dict[str, Any]:
        """See `DocumentReader`."""
        import matplotlib

        tops = sorted({module.partition(".")[0] for module in self.modules})
        versions = {top: getattr(_import(top), "__version__", "") for top in tops}
        return {
            "reader": type(self).__name__,
            "name": self.name,
            "modules": self.modules,
            "run_examples": self.run_examples,
            "versions": versions | {"matplotlib": matplotlib.__version__},
        }

    def units(self, size: int) -> list[list[str]]:
        """See `DocumentReader`: lists of dotted names."""
        names = sorted(
            {name for module in self.modules for name in _documented(module)}, key=str.lower
        )
        if not names:
            raise ValueError(f"documents: nothing is documented in {', '.join(self.modules)}")
        return [names[start : start + size] for start in range(0, len(names), size)]

    def read(self, unit: Sequence[str]) -> Iterator[Document | BrokenDocument]:
        """See `DocumentReader`."""
        for name in unit:
            identity = f"{self.name}/{name}"
            try:
                text = inspect.getdoc(_find(name)) or ""
                yield Document(identity, list(self._items(name, text)))
            except (ValueError, ImportError, AttributeError) as error:
                yield BrokenDocument(identity, " ".join(str(error).split()))

    def _items(self, name: str, text: str) -> Iterator[str | Picture]:
        parts = doctest.DocTestParser().parse(text)
        draws = self.run_examples and "plt." in text
        figures = _figures(parts) if draws else ([] for _ in parts)
        number = 0
        for part, drawn in zip(parts, figures, strict=True):
            if isinstance(part, str):
                yield from paragraphs_of(part)
            for data in drawn:
                number += 1
                source = f"{self.name}/{name}-{number}.png"
                yield Picture(source, data=data, alt=f"{name}, figure {number}")


def paragraphs_of(docstring: str) -> Iterator[str]:
    """The running text of a part of a docstring, without its markup."""
    for block in re.split(r"\n\s*\n", _UNDERLINE.sub("\n\n", docstring)):
        lines = [line.strip() for line in block.splitlines()]
        if not any(lines) or lines[0].startswith((".. ", ">>>", "...")):
            continue
        text = " ".join(lines)
        text = _REFERENCE.sub("", _ROLE.sub(r"\1", text)).replace("\\", "")
        text = _LITERAL.sub(r"\1", text).replace("::", ":").strip()
        if text:
            yield text


def _documented(module: str) -> Iterator[str]:
    """Dotted names of what a module and those below it export."""
    top = _import(module)
    below = pkgutil.iter_modules(getattr(top, "__path__", []))
    hidden = ("_", "test", "conftest", "setup")
    names = [f"{module}.{m.name}" for m in below if m.ispkg and not m.name.startswith(hidden)]
    seen: set[int] = set()
    for name in [module, *sorted(names)]:
        with contextlib.suppress(ImportError):
            found = _import(name)
            for attribute in sorted(getattr(found, "__all__", [])):
                value = getattr(found, attribute, None)
                documented = callable(value) and inspect.getdoc(value)
                if documented and id(value) not in seen:
                    seen.add(id(value))
                    yield f"{name}.{attribute}"


def _import(name: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is not None and name.startswith(error.name):
                raise ValueError(f"documents: no module {name!r} is installed") from error
            raise


def _find(name: str) -> Any:
    module, _, attribute = name.rpartition(".")
    return getattr(_import(module), attribute)


def _figures(parts: Sequence[Any]) -> Iterator[list[bytes]]:
    """Runs examples; yields the figures that are complete after each part."""
    from matplotlib import pyplot

    seeded = np.random.default_rng
    names: dict[str, Any] = {"np": np}
    goes_on, total = True, 0
    last = max((k for k, p in enumerate(parts) if not isinstance(p, str)), default=-1)

    def make_generator(seed: Any = None) -> Any:
        return seeded(0 if seed is None else seed)

    pyplot.close("all")
    pyplot.switch_backend("agg")
    with (
        warnings.catch_warnings(),
        mock.patch("numpy.random.default_rng", make_generator),
        mock.patch.object(pyplot, "show"),
        pyplot.rc_context(),
    ):
        warnings.simplefilter("ignore")
        np.random.seed(0)  # noqa: NPY002 - old examples draw from it
        for number, part in enumerate(parts):
            shown: list[bytes] = []
            if not isinstance(part, str) and goes_on:
                goes_on = _execute(part.source, names)
                if ("show(" in part.source or number == last) and total < MOST_FIGURES:
                    shown = [_png(pyplot.figure(n)) for n in pyplot.get_fignums()]
                    total += len(shown)
                    pyplot.close("all")
            yield shown
        pyplot.close("all")


def _execute(source: str, names: dict[str, Any]) -> bool:
    """Runs a statement of an example; returns whether the next one can be run."""
    if _OUTSIDE.search(source):
        return False
    try:
        code = compile(source, "<example>", "single")
        with contextlib.redirect_stdout(io.StringIO()), np.errstate(all="ignore"):
            exec(code, names)
    except Exception:  # whatever other people's examples raise
        return False
    return True


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    # Without the version of matplotlib in the file, which is no part of the picture.
    figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return buffer.getvalue()
