"""Makes the pages of the documentation: the READMEs as they are, and a page for each module.

mkdocs runs it (`make docs`).
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import mkdocs_gen_files

ROOT = Path(__file__).parent.parent
PACKAGES = ("recipes", "callbacks", "datamodules", "modules", "kernels")
GUIDES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")
LINK = re.compile(r"\]\(([^)#:]+)\)")


def main() -> None:
    """Writes all pages and the navigation."""
    navigation = ["* [tenfold](README.md)", "* Recipes"]
    recipes = sorted((ROOT / "recipes").glob("*/README.md"))
    for guide in (*(ROOT / name for name in GUIDES), *recipes):
        copy_guide(guide)
    navigation += [f"    * [{title(guide)}]({guide.relative_to(ROOT)})" for guide in recipes]
    navigation.append("* Reference")
    for package in PACKAGES:
        navigation.append(f"    * {package}")
        navigation += [
            f"        * [{name.partition('.')[2] or name}]({page})"
            for name, page in reference_pages(package)
        ]
    navigation += [f"* [{title(ROOT / name)}]({name})" for name in GUIDES[1:]]
    with mkdocs_gen_files.open("NAVIGATION.md", "w") as file:
        file.write("\n".join(navigation) + "\n")


def copy_guide(path: Path) -> None:
    """Copies a README, and the files that it links to, to the same places among the pages."""
    for target in LINK.findall(path.read_text(encoding="utf-8")):
        linked = (path.parent / target).resolve()
        if linked.name not in GUIDES:
            copy(linked)
    copy(path)


def copy(path: Path) -> None:
    """Puts a file of the checkout at its own place among the pages."""
    with mkdocs_gen_files.open(str(path.relative_to(ROOT)), "wb") as file:
        file.write(path.read_bytes())


def title(path: Path) -> str:
    """The first heading of a page."""
    return path.read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")


def reference_pages(package: str) -> Iterator[tuple[str, str]]:
    """Writes a page for each module with public names; yields its dotted name and its page."""
    for path in sorted((ROOT / package).rglob("*.py")):
        module = path.relative_to(ROOT).with_suffix("")
        parts = module.parts[:-1] if module.name == "__init__" else module.parts
        if any(part.startswith("_") for part in parts) or not has_public_names(path):
            continue
        name = ".".join(parts)
        page = f"reference/{'/'.join(parts)}.md"
        with mkdocs_gen_files.open(page, "w") as file:
            file.write(
                f"# {name}\n\n::: tenfold.{name}\n    options: {{show_root_heading: false}}\n"
            )
        yield name, page


def has_public_names(path: Path) -> bool:
    """Whether a file defines a function, a class or a constant that is not private."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        names = [node.name] if isinstance(node, ast.FunctionDef | ast.ClassDef) else []
        if isinstance(node, ast.Assign):
            names = [target.id for target in node.targets if isinstance(target, ast.Name)]
        if any(not name.startswith("_") for name in names):
            return True
    return False


main()
