"""What the name of an icon says that it shows."""

import re
from pathlib import PurePosixPath

# What says how an icon is drawn, or what stands beside it, not what it shows.
STYLES = {"outline", "outlined", "filled", "fill", "round", "rounded", "sharp", "line", "solid"}
MODIFIERS = {
    *("circle", "square", "rectangle", "hexagon", "octagon", "diamond", "badge", "dashed", "dot"),
    *("off", "on", "plus", "minus", "x", "check", "search", "cog", "heart", "star", "question"),
    *("up", "down", "left", "right", "top", "bottom", "high", "low", "big", "small", "mini"),
    *("horizontal", "vertical", "off", "cancel", "share", "pause", "bolt", "code", "pin", "alert"),
    *("arrow", "arrows", "chevron", "chevrons"),
}


def family(name: str) -> str:
    """Returns what an icon shows, for splits: `circle-user-round` and `user-plus` are `user`.

    That is the first word which is no modifier, digits at the end left out; the first word of all
    where every word is one.

    Args:
        name: Of the file, as `user-plus`.
    """
    words = [re.sub(r"\d+$", "", word) for word in re.split(r"[-_ ]+", PurePosixPath(name).name)]
    words = [word for word in words if word and word not in STYLES] or [name]
    return next((word for word in words if word not in MODIFIERS), words[0]).lower()
