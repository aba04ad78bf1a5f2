"""Which models of Debian's sweethome3d-furniture make the embedded set, and under which label.

The label comes from the English name in the catalogue: the first class of `CLASS_WORDS` of which a
word occurs in the name up to its first comma. `EXCEPTIONS` corrects what a name says wrongly; each
was decided by looking at the shape. A change of either is a new `VERSION`.
"""

import re

VERSION = 1
# Classes come in order of precedence: a desk lamp is a lamp, a glass table is a table.
CLASS_WORDS: dict[str, str] = {
    "window": "window",
    "cabinet": "cabinet wardrobe bookcase shelves cupboard dresser chest",
    "door": "door",
    "lamp": "lamp light lights lantern lamppost spotlight",
    "table": "table desk",
    "vehicle": "car truck scooter sedan bicycle bike motorbike tricycle van bus suv biplane "
    "rowboat beetle focus leon peugeot renault chevrolet yamaha",
    "chair": "chair stool",
    "sofa": "sofa armchair couch",
    "bed": "bed crib",
    "plant": "plant tree bamboo flowers tulips ficus palm cactus bush yucca lily orchids "
    "spathiphyllum acacia pine poplar cypress beech maple blossom",
    "person": "female male boy girl",
    "plug": "plug switch socket",
    "vessel": "bottle vase glass cup bowl jar mug pot",
}
CLASS_NAMES = tuple(sorted(CLASS_WORDS))
# Model -> class, or None and the reason why it is left out.
EXCEPTIONS: dict[str, tuple[str | None, str]] = {
    "blendswap-cc-0/armchair": ("chair", "an office chair with arms"),
    "blendswap-cc-by/armChair2": ("chair", "an office chair with arms"),
    "blendswap-cc-0/tableFan": (None, "a fan"),
    "blendswap-cc-by/tableTennisBat": (None, "a bat"),
    "blendswap-cc-0/bedsideTable2": (None, "a chest of drawers in shape"),
    "blendswap-cc-by/bedsideTable": (None, "a chest of drawers in shape"),
    "scopia/changing-table": (None, "a chest of drawers in shape"),
    "scopia/chest-freezer": (None, "a freezer"),
    "blendswap-cc-0/cupcake": (None, "a cake"),
    "scopia/indoor-bike": (None, "an exercise machine"),
    "scopia/convertible-sofa-BZ-opened": (None, "a sofa opened to a bed"),
    "katorlegaz/window-shutter": (None, "a shutter without a window"),
    "katorlegaz/window-blinds": (None, "a blind without a window"),
    "scopia/chaussette": (None, "a sock (mistranslated as socket)"),
    "blendswap-cc-0/plantie": (None, "a box, as the hedges are"),
}


def class_of(model: str, name: str) -> str | None:
    """Returns the class of a model, None for one that is left out.

    Args:
        model: Its folder in the library, such as "scopia/armchair".
        name: Its English name.
    """
    if model in EXCEPTIONS:
        return EXCEPTIONS[model][0]
    text = name.lower().partition(",")[0]
    for label, words in CLASS_WORDS.items():
        if re.search(rf"\b(?:{words.replace(' ', '|')})\b", text):
            return label
    return None
