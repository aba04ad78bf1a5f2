"""Where icons come from: folders, archives of packages, the package `lucide`."""

import fnmatch
import hashlib
import io
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from ...modules.svg import Document, SvgError, parse_svg
from .deepsvg import deepsvg_documents, deepsvg_table

MAX_BYTES = 1 << 20  # of one file, as `parse_svg` has it
LUCIDE = "lucide"
LUCIDE_LICENCE = "ISC, (c) Lucide Contributors; parts MIT, (c) Cole Bemis (Feather)"


@dataclass(frozen=True)
class IconSource:
    """Icons of one origin.

    Args:
        path: A folder of SVG files or of DeepSVG's tensors (`icons_meta.csv`, `icons_tensor/`), an
            archive (.zip, .whl, .tgz, .tar.gz, as `npm pack` and `pip download` bring them), or
            `lucide`, the installed package.
        glob: Which files, by their path below the folder or in the archive; `*` also goes over `/`.
        licence: Of the icons, kept beside each; the package `lucide` brings its own.
    """

    path: str
    glob: str = "*.svg"
    licence: str = ""

    @property
    def terms(self) -> str:
        """The licence, as far as it is known."""
        return self.licence or (LUCIDE_LICENCE if self.path == LUCIDE else "")

    def documents(self) -> Iterator[tuple[str, Document | ValueError]]:
        """Yields name and document of each icon, or why it cannot be read, in the order of names.

        Raises:
            ValueError: There is no such folder or archive, or no file in it.
            ImportError: The package `lucide` is not installed.
        """
        folder = Path(self.path).expanduser()
        table = deepsvg_table(folder) if folder.is_dir() else None
        if table is not None:
            yield from deepsvg_documents(table)
            return
        for name, content in self._files():
            try:
                yield name, parse_svg(content, name=name)
            except SvgError as error:
                yield name, error

    def _files(self) -> Iterator[tuple[str, bytes]]:
        """Yields name, without `.svg`, and content of each file."""
        if self.path == LUCIDE:
            yield from _from_zip(_lucide_archive(), self.glob)
            return
        path = Path(self.path).expanduser()
        if path.is_dir():
            found = _from_folder(path, self.glob)
        elif path.suffix in (".zip", ".whl") and path.is_file():
            found = _from_zip(path, self.glob)
        elif path.name.endswith((".tgz", ".tar.gz")) and path.is_file():
            found = _from_tar(path, self.glob)
        else:
            raise ValueError(f"sources: '{self.path}' is no folder, .zip, .whl, .tgz, nor 'lucide'")
        empty = True
        for item in found:
            empty = False
            yield item
        if empty:
            raise ValueError(f"sources: no file {self.glob!r} in '{self.path}'")

    def fingerprint(self) -> str:
        """Returns a SHA-256 that tells whether files have changed; reads no contents of folders."""
        if self.path == LUCIDE:
            state = hashlib.sha256(_lucide_archive().read_bytes()).hexdigest()
        elif (path := Path(self.path).expanduser()).is_dir():
            files = sorted(file for file in path.rglob("*") if file.is_file())
            stats = [
                (str(f.relative_to(path)), f.stat().st_size, f.stat().st_mtime_ns) for f in files
            ]
            state = repr(stats)
        elif path.is_file():
            state = hashlib.sha256(path.read_bytes()).hexdigest()
        else:
            raise ValueError(f"sources: '{self.path}' is no folder, .zip, .whl, .tgz, nor 'lucide'")
        return hashlib.sha256(f"{self.glob}\0{self.licence}\0{state}".encode()).hexdigest()


def _lucide_archive() -> Path:
    spec = find_spec(LUCIDE)
    locations = spec.submodule_search_locations if spec else None
    archive = Path(next(iter(locations)), "lucide.zip") if locations else None
    if archive is None or not archive.is_file():
        raise ImportError(
            "the lucide icons are not installed: pip install 'tenfold[icons]', or give "
            "data.init_args.sources a folder of SVG files"
        )
    return archive


def _matches(name: str, glob: str) -> bool:
    return name.lower().endswith(".svg") and fnmatch.fnmatchcase(name, glob)


def _stem(name: str) -> str:
    return name[: -len(".svg")]


def _from_folder(folder: Path, glob: str) -> Iterator[tuple[str, bytes]]:
    names = (p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    for name in sorted(name for name in names if _matches(name, glob)):
        with (folder / name).open("rb") as file:
            yield _stem(name), file.read(MAX_BYTES + 1)


def _from_zip(path: Path, glob: str) -> Iterator[tuple[str, bytes]]:
    try:
        with zipfile.ZipFile(path) as archive:
            for name in sorted(n for n in archive.namelist() if _matches(n, glob)):
                with archive.open(name) as file:
                    yield _stem(name), file.read(MAX_BYTES + 1)
    except zipfile.BadZipFile as error:
        raise ValueError(f"sources: '{path}' is no zip archive ({error})") from error


def _from_tar(path: Path, glob: str) -> Iterator[tuple[str, bytes]]:
    try:
        with tarfile.open(fileobj=io.BytesIO(path.read_bytes()), mode="r:gz") as archive:
            members = [m for m in archive.getmembers() if m.isfile() and _matches(m.name, glob)]
            for member in sorted(members, key=lambda m: m.name):
                file = archive.extractfile(member)
                assert file is not None
                yield _stem(member.name), file.read(MAX_BYTES + 1)
    except (tarfile.TarError, OSError) as error:
        raise ValueError(f"sources: '{path}' is no .tgz archive ({error})") from error
