"""Several pictures in one, for models that take one."""

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

GAP = 8  # pixels between tiles
PAPER, INK = (255, 255, 255), (0, 0, 0)


class CompositeImage:
    """Puts pictures into one: those in question on top, the options in a grid below, with letters.

    Args:
        tile: Side in pixels that each picture gets; its shape is kept, the rest is white.
        draw_letters: Whether options have their letter in a corner. Without, whoever asks has to
            say where which option is.

    Raises:
        ValueError: A tile of less than 16 pixels.
    """

    def __init__(self, tile: int = 336, draw_letters: bool = True) -> None:
        if tile < 16:
            raise ValueError(f"tile must be 16 pixels or more, got {tile}")
        self.tile, self.draw_letters = tile, draw_letters

    def __call__(
        self, given: Sequence[Image.Image], options: Sequence[Image.Image] = ()
    ) -> Image.Image:
        """Returns the picture.

        Args:
            given: In a row on top, from left to right.
            options: Two in a row below, A and B, then C and D.
        """
        columns = max(len(given), 2 if options else 1)
        rows = 1 + -(-len(options) // 2)
        step = self.tile + GAP
        size = (columns * step + GAP, rows * step + GAP)
        whole = Image.new("RGB", size, PAPER)
        indent = (size[0] - len(given) * step - GAP) // 2  # a single one stands in the middle
        for place, image in enumerate(given):
            self._put(whole, image, (indent + GAP + place * step, GAP))
        for place, image in enumerate(options):
            row, column = divmod(place, 2)
            corner = (GAP + column * step, GAP + (row + 1) * step)
            self._put(whole, image, corner)
            if self.draw_letters:
                self._letter(whole, chr(ord("A") + place), corner)
        return whole

    def _put(self, whole: Image.Image, image: Image.Image, corner: tuple[int, int]) -> None:
        scale = self.tile / max(image.size)
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        sized = image if image.size == size else image.resize(size, Image.Resampling.LANCZOS)
        left, top = ((self.tile - side) // 2 for side in size)
        whole.paste(sized.convert("RGB"), (corner[0] + left, corner[1] + top))

    def _letter(self, whole: Image.Image, letter: str, corner: tuple[int, int]) -> None:
        side = max(12, self.tile // 8)
        draw = ImageDraw.Draw(whole)
        box = (*corner, corner[0] + side, corner[1] + side)
        draw.rectangle(box, fill=PAPER, outline=INK)
        middle = (corner[0] + side / 2, corner[1] + side / 2)
        draw.text(middle, letter, fill=INK, anchor="mm", font=ImageFont.load_default(side * 0.8))
