"""The optional packages of `tenfold[realsyn]`."""

import importlib
from typing import Any


def require(module: str, package: str) -> Any:
    """Imports a module of an optional package.

    Args:
        module: Its dotted name.
        package: What is installed, for the message.

    Raises:
        ValueError: It is not installed; the message says how to.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ValueError(f"{package} is missing: pip install 'tenfold[realsyn]'") from error
