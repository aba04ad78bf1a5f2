"""What stages of the pipeline do with Arrow tables: split by reasons, count, sample, bin."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ...modules.files import atomic_path

NUM_EXAMPLES = 12


@dataclass(frozen=True)
class Verdict:
    """What a filter decided.

    Attributes:
        kept: The rows that stay, in their order.
        dropped: The others, with a column `reason`.
    """

    kept: pa.Table
    dropped: pa.Table

    @property
    def counts(self) -> dict[str, int]:
        """How many rows were dropped for each reason."""
        found = pc.value_counts(self.dropped["reason"].combine_chunks()).to_pylist()
        return {row["values"]: row["counts"] for row in sorted(found, key=lambda r: r["values"])}


def split_by_reason(
    table: pa.Table, reasons: pa.Array | pa.ChunkedArray | Sequence[str]
) -> Verdict:
    """Divides a table into rows without and with a reason to be dropped.

    Args:
        table: Any.
        reasons: A text per row, "" for one that stays.
    """
    if not isinstance(reasons, pa.Array | pa.ChunkedArray):
        reasons = pa.array(reasons, pa.string())
    stays = pc.equal(reasons, "")
    gone = pc.invert(stays)
    dropped = table.filter(gone).append_column("reason", pc.filter(reasons, gone))
    return Verdict(table.filter(stays), dropped)


def hash64(seed: int, text: str) -> int:
    """A number in [0, 2^64) that looks random but is the same on any machine."""
    digest = hashlib.blake2b(text.encode(), digest_size=8, salt=seed.to_bytes(16, "little"))
    return int.from_bytes(digest.digest(), "little")


def sample_rows(table: pa.Table, number: int, seed: int = 0) -> pa.Table:
    """The rows whose `id` hashes lowest: samples of parts of a table join to one of the whole."""
    if len(table) <= number:
        return table
    hashes = np.array([hash64(seed, i) for i in table["id"].to_pylist()], dtype=np.uint64)
    return table.take(np.sort(np.argsort(hashes, kind="stable")[:number]))


def take_rows(table: pa.Table, rows: Sequence[int]) -> pa.Table:
    """Chosen rows, perhaps none: pyarrow's own `take` refuses a list without any number."""
    return table.take(pa.array(rows, pa.int64()))


def sample_by_reason(verdict: Verdict, columns: Sequence[str]) -> list[dict[str, Any]]:
    """Examples of what was dropped, some of each reason, and of what was kept (reason "kept")."""
    examples = []
    kept = verdict.kept.append_column("reason", pa.array(["kept"] * len(verdict.kept), pa.string()))
    for reason in ["kept", *verdict.counts]:
        rows = kept
        if reason != "kept":
            rows = verdict.dropped.filter(pc.equal(verdict.dropped["reason"], reason))
        chosen = sample_rows(rows, NUM_EXAMPLES).select(["id", "reason", *columns])
        examples += chosen.to_pylist()
    return examples


def histogram(values: Any, edges: Sequence[float]) -> list[int]:
    """Counts per bin; what is outside of the edges goes into the first or last bin."""
    values = np.asarray(values, dtype=np.float64)
    clipped = np.clip(values[np.isfinite(values)], edges[0], edges[-1])
    return [int(count) for count in np.histogram(clipped, edges)[0]]


def write_table(table: pa.Table, path: Path, row_group_size: int | None = None) -> None:
    """Writes Parquet, whole or not at all; the same table gives the same bytes."""
    with atomic_path(path) as temporary:
        pq.write_table(
            table.combine_chunks(), temporary, compression="zstd", row_group_size=row_group_size
        )


def read_table(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Reads one Parquet file."""
    # ParquetFile and not read_table, which imports pyarrow.dataset and looks for partitions.
    with pq.ParquetFile(path) as file:
        return file.read(columns=columns)


def canonical_json(value: Any) -> str:
    """JSON that equal values share."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
