"""Writes the table of every quickstart with every overlay into recipes/README.md.

python tests/helpers/matrix_table.py REPORT.xml     the JUnit report of tests/recipes/test_matrix.py
"""

import re
import sys
from pathlib import Path
from xml.etree import ElementTree

sys.path.insert(0, str(Path(__file__).parents[1] / "recipes"))
from test_matrix import NONE, OVERLAYS, RECIPES

README = Path(__file__).parents[2] / "recipes" / "README.md"
BLOCK = re.compile(r"(<!-- matrix: .*? -->\n).*?(<!-- end of matrix -->)", re.DOTALL)
STAGES = ("trains", "resumes", "exports", "merges")


def read_report(path: Path) -> dict[tuple[str, str], str]:
    """Returns the text of each cell."""
    found = {}
    for case in ElementTree.parse(path).iter("testcase"):
        match = re.fullmatch(r"test_cell\[(.+)-(\w+)\]", case.get("name", ""))
        if match is None:
            continue
        said = {p.get("name"): p.get("value", "") for p in case.iter("property")}
        missing = next((stage for stage in STAGES if stage not in said), None)
        value = said.get("metric", "")
        text = f"{value} **not: {missing}**" if missing else f"{value} ({said['merges']})"
        found[match[1], match[2]] = text.strip()
    return found


def table(cells: dict[tuple[str, str], str]) -> str:
    """Returns the table in Markdown.

    Raises:
        SystemExit: A cell is in neither the report nor the list of those that have none.
    """
    lines = ["| | metric | " + " | ".join(OVERLAYS) + " |", "|---" * (len(OVERLAYS) + 2) + "|"]
    for recipe in RECIPES:
        row = [recipe, cells[recipe, "alone"].split()[0]]
        for overlay in OVERLAYS:
            if (recipe, overlay) not in NONE and (recipe, overlay) not in cells:
                raise SystemExit(f"error: the report has no cell of {recipe} with {overlay}")
            text = (
                NONE.get((recipe, overlay)) or cells[recipe, overlay].removeprefix(row[1]).strip()
            )
            row.append(text)
        lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    text = README.read_text(encoding="utf-8")
    new = table(read_report(Path(sys.argv[1])))
    README.write_text(BLOCK.sub(lambda m: m[1] + new + m[2], text), encoding="utf-8")
