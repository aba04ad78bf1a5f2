"""TFRecord files and their SequenceExamples, without TensorFlow.

A record is its length (uint64), a masked CRC-32C of these 8 bytes, the data, and a masked CRC-32C
of the data; numbers are little-endian. Files may be gzipped, whatever they are called.
"""

import gzip
import struct
import zlib
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import IO, Any

from ...modules.files import atomic_path

GZIP = b"\x1f\x8b"
MASK = 0xA282EAD8
MAX_LENGTH = 2**31  # protobuf's


def read_records(path: str | Path, verify: bool = True) -> Iterator[bytes | ValueError]:
    """Yields the records of a file.

    A record with wrong data is an error in its place, and reading goes on; after a wrong length, or
    where the file ends early, it cannot, and the error is the last thing. Errors name file, record
    and byte (of the unzipped content).

    Args:
        path: The file.
        verify: Whether to compare checksums.

    Raises:
        ValueError: There is no such file; with `verify`, crc32c is missing.
    """
    path = Path(path)
    if verify:
        masked_crc(b"")
    try:
        file = path.open("rb")
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    with file:
        zipped = file.read(2) == GZIP
        file.seek(0)
        stream: Any = gzip.GzipFile(fileobj=file) if zipped else file
        yield from _records(stream, path, verify)


def _records(stream: IO[bytes], path: Path, verify: bool) -> Iterator[bytes | ValueError]:
    number, offset = 0, 0

    def problem(what: str) -> ValueError:
        return ValueError(f"{path}: record {number} at byte {offset}: {what}")

    while True:
        try:
            head = stream.read(12)
            if not head:
                return
            if len(head) < 12:
                yield problem("the file ends in its head")
                return
            length, crc = struct.unpack("<QI", head)
            wrong = verify and masked_crc(head[:8]) != crc
            if wrong or length > MAX_LENGTH:
                yield problem("its length is damaged; what follows cannot be read")
                return
            data = stream.read(length)
            foot = stream.read(4)
        except (EOFError, OSError, zlib.error) as error:
            yield problem(f"the file is cut short or damaged ({error})")
            return
        if len(data) < length or len(foot) < 4:
            yield problem(f"the file ends after {len(data)} of {length} bytes")
            return
        if verify and masked_crc(data) != struct.unpack("<I", foot)[0]:
            yield problem("its checksum is wrong")
        else:
            yield data
        number, offset = number + 1, offset + length + 16


def write_records(records: Iterable[bytes], path: str | Path, compress: bool = True) -> int:
    """Writes records; returns how many."""
    number = 0
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        # No name and no time inside, so that equal records give equal files.
        stream: Any = gzip.GzipFile("", "wb", fileobj=file, mtime=0) if compress else file
        for data in records:
            head = struct.pack("<Q", len(data))
            stream.write(head + struct.pack("<I", masked_crc(head)))
            stream.write(data + struct.pack("<I", masked_crc(data)))
            number += 1
        if compress:
            stream.close()
    return number


def masked_crc(data: bytes) -> int:
    """CRC-32C, rotated and shifted, as TFRecord has it.

    Raises:
        ValueError: crc32c is missing.
    """
    try:
        from crc32c import crc32c
    except ImportError as error:
        raise ValueError(
            "TFRecord checksums: crc32c is missing: pip install 'tenfold[captions]', or set "
            "verify_crc: false"
        ) from error
    value: int = crc32c(data)
    return (((value >> 15) | (value << 17)) + MASK) & 0xFFFFFFFF


@cache
def sequence_example() -> Any:
    """Returns protobuf's class of `tf.train.SequenceExample`.

    Made here, from the same description, as no package but TensorFlow's own is kept up to date.
    """
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    described: Any = descriptor_pb2
    kinds = described.FieldDescriptorProto
    file = described.FileDescriptorProto(
        name="tenfold/sequence_example.proto", package="tenfold.tfrecord", syntax="proto3"
    )

    def message(name: str) -> Any:
        return file.message_type.add(name=name)

    def add(owner: Any, name: str, number: int, kind: Any, repeated: bool, of: str = "") -> Any:
        label = kinds.LABEL_REPEATED if repeated else kinds.LABEL_OPTIONAL
        found = owner.field.add(name=name, number=number, type=kind, label=label)
        if of:
            found.type_name = f".tenfold.tfrecord.{of}"
        return found

    for name, kind in (
        ("BytesList", kinds.TYPE_BYTES),
        ("FloatList", kinds.TYPE_FLOAT),
        ("Int64List", kinds.TYPE_INT64),
    ):
        add(message(name), "value", 1, kind, True)
    feature = message("Feature")
    feature.oneof_decl.add(name="kind")
    for number, (name, of) in enumerate(
        (("bytes_list", "BytesList"), ("float_list", "FloatList"), ("int64_list", "Int64List")), 1
    ):
        add(feature, name, number, kinds.TYPE_MESSAGE, False, of).oneof_index = 0
    add(message("FeatureList"), "feature", 1, kinds.TYPE_MESSAGE, True, "Feature")
    for name, field, value in (
        ("Features", "feature", "Feature"),
        ("FeatureLists", "feature_list", "FeatureList"),
    ):
        owner = message(name)
        entry = owner.nested_type.add(name="".join(w.title() for w in field.split("_")) + "Entry")
        entry.options.map_entry = True
        add(entry, "key", 1, kinds.TYPE_STRING, False)
        add(entry, "value", 2, kinds.TYPE_MESSAGE, False, value)
        add(owner, field, 1, kinds.TYPE_MESSAGE, True, f"{name}.{entry.name}")
    example = message("SequenceExample")
    add(example, "context", 1, kinds.TYPE_MESSAGE, False, "Features")
    add(example, "feature_lists", 2, kinds.TYPE_MESSAGE, False, "FeatureLists")
    pool: Any = descriptor_pool.DescriptorPool()
    pool.Add(file)
    found = pool.FindMessageTypeByName("tenfold.tfrecord.SequenceExample")
    return message_factory.GetMessageClass(found)


def values_of(feature: Any) -> list[Any]:
    """Returns the values of a Feature; none where no kind is set."""
    kind = feature.WhichOneof("kind")
    return [] if kind is None else list(getattr(feature, kind).value)
