"""Interleaved documents as readers give them, in the order of a page."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Picture:
    """A reference to an image.

    Attributes:
        source: Where it is from, for people and for take-downs: an address, or a path below the
            reader's folder.
        path: The file, where it is one.
        data: The encoded image, where it came with the document.
        alt: What the document says about it ("" if nothing); for evaluation only.
    """

    source: str
    path: Path | None = None
    data: bytes | None = None
    alt: str = ""

    def read(self, max_bytes: int) -> bytes:
        """The encoded image.

        Raises:
            ValueError: There is none here, it cannot be read, or it is larger than `max_bytes`.
        """
        if self.data is not None:
            data = self.data
        elif self.path is None:
            raise ValueError("the image is not here: only its address is known")
        else:
            try:
                if self.path.stat().st_size > max_bytes:
                    raise ValueError(f"the file has more than {max_bytes:,} bytes")
                data = self.path.read_bytes()
            except OSError as error:
                raise ValueError(f"cannot be read: {error.strerror}") from error
        if len(data) > max_bytes:
            raise ValueError(f"the image has more than {max_bytes:,} bytes")
        return data


@dataclass(frozen=True)
class Document:
    """Texts and images of a page in their order.

    Attributes:
        id: Unique among the documents of all readers, the same on every machine.
        items: A `str` for each paragraph, a `Picture` for each image.
    """

    id: str
    items: list[str | Picture] = field(default_factory=list)


@dataclass(frozen=True)
class BrokenDocument:
    """A document that cannot be read.

    Attributes:
        id: As of a `Document`.
        reason: What is wrong with it.
    """

    id: str
    reason: str


class DocumentReader(ABC):
    """Finds documents and reads them, in an order that does not depend on the machine.

    Its public attributes are its arguments; a worker process gets a copy.
    """

    @property
    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """What decides the documents, as plain JSON; files by name and size, not by path."""

    @abstractmethod
    def units(self, size: int) -> Sequence[Any]:
        """Divides the documents into parts of at most `size`, in order.

        Returns:
            Small plain values, of which `read` takes each.

        Raises:
            ValueError: There are no documents.
        """

    @abstractmethod
    def read(self, unit: Any) -> Iterator[Document | BrokenDocument]:
        """Reads the documents of one part in order."""


def list_files(root: Path, suffixes: Sequence[str]) -> list[str]:
    """Names of the files below a folder that end so, sorted by their parts; hidden ones left out.

    Args:
        root: The folder.
        suffixes: Lower-case endings with their dots; those of names are compared in any case.

    Raises:
        ValueError: There is no folder, or no such file in it.
    """
    if not root.is_dir():
        raise ValueError(f"documents: no folder {str(root)!r}")
    found = []
    for path in root.rglob("*"):
        name = path.relative_to(root)
        hidden = any(part.startswith(".") for part in name.parts)
        if path.suffix.lower() in suffixes and not hidden and path.is_file():
            found.append(name)
    if not found:
        raise ValueError(f"documents: no {' or '.join(suffixes)} below {str(root)!r}")
    return [name.as_posix() for name in sorted(found)]
