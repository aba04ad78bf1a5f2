"""The built-in recipes: found by name, listed, printed, copied. Imports no torch."""

import difflib
import re
import shutil
from importlib.resources import files
from pathlib import Path

RECIPES = Path(str(files("tenfold.recipes")))


def recipe_names() -> list[str]:
    """Names of all built-in YAML files, such as `language_model/quickstart`, sorted."""
    return sorted(
        path.relative_to(RECIPES).with_suffix("").as_posix() for path in RECIPES.glob("*/*.yaml")
    )


def find_recipe(name: str) -> Path:
    """Turns what a user wrote after `--config` into a file.

    Args:
        name: A path, or the name of a built-in recipe, with or without `recipes/` and `.yaml`.

    Returns:
        The path of an existing YAML file. A file of the user's wins over a built-in recipe.

    Raises:
        ValueError: Nothing is there; the message names the nearest built-in recipes.
    """
    path = Path(name)
    if path.is_file():
        return path
    stem = re.sub(r"\.ya?ml$", "", name).removeprefix("./").removeprefix("recipes/")
    names = recipe_names()
    if stem in names:
        return RECIPES / f"{stem}.yaml"
    near = difflib.get_close_matches(stem, names, n=3, cutoff=0.5) or [
        other for other in names if stem.split("/")[-1] in other
    ]
    hint = f"did you mean {' or '.join(near)}?" if near else "`tenfold list` shows what there is"
    raise ValueError(f"no file and no built-in recipe '{name}': {hint}")


def describe(path: Path) -> str:
    """The first comment line of a recipe, which says what it is."""
    first = path.read_text(encoding="utf-8").splitlines()[0]
    return first.removeprefix("#").strip() if first.startswith("#") else ""


def list_recipes(method: str | None = None) -> None:
    """List the built-in recipes.

    Args:
        method: Only those of this method, such as `language_model` or `overlays`.
    """
    names = recipe_names()
    if method is not None:
        methods = sorted({name.split("/")[0] for name in names})
        if method not in methods:
            raise ValueError(f"no recipes for '{method}': there are {', '.join(methods)}")
        names = [name for name in names if name.startswith(f"{method}/")]
    width = max(map(len, names))
    for name in names:
        print(f"{name:<{width}}  {describe(RECIPES / f'{name}.yaml')}".rstrip())


def show_recipe(recipe: str) -> None:
    """Print a recipe.

    Args:
        recipe: A built-in name such as `language_model/quickstart`, or a path.
    """
    print(find_recipe(recipe).read_text(encoding="utf-8"), end="")


def copy_recipe(recipe: str, dest: str, overwrite: bool = False) -> None:
    """Copy a recipe, to change it.

    Args:
        recipe: A built-in name such as `language_model/quickstart`, or a path.
        dest: The file to write, or an existing folder.
        overwrite: Replace `dest` when it exists.
    """
    source = find_recipe(recipe)
    target = Path(dest)
    if target.is_dir():
        target = target / source.name
    if target.exists() and not overwrite:
        raise ValueError(f"{target} exists: choose another name or pass --overwrite")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    print(f"{target}: run it with `tenfold fit --config {target}`")
