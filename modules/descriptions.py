"""Objects that a plain description rebuilds anywhere: in a worker process, on another machine."""

from collections.abc import Mapping
from typing import Any, TypeVar

from jsonargparse import ArgumentError, ArgumentParser

T = TypeVar("T")


class Rebuildable:
    """Its public attributes are its constructor's arguments: plain, or rebuildable themselves.

    What is made of them - clients, weights, open files - is made at first use, in attributes that
    begin with an underscore: a copy or a worker process gets the arguments only, and makes its own.
    """

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if not name.startswith("_")}


def build_described(kind: type[T], description: Mapping[str, Any], name: str) -> T:
    """Builds an object from `class_path` and `init_args`, as recipes write them.

    Args:
        kind: The class that the object must be of.
        description: With short class names where their modules are imported, else with full ones.
        name: What it is, for messages.

    Raises:
        ValueError: No such class or argument, or a value of the wrong type.
    """
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--described", type=kind, required=True)
    try:
        parsed = parser.parse_object({"described": dict(description)})
        built: T = parser.instantiate(parsed).described
    except (ArgumentError, ValueError) as error:
        said = error.__cause__ or error if isinstance(error, ValueError) else error
        raise ValueError(f"{name}: {' '.join(str(said).split())}") from error
    return built
