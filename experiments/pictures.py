"""Draw the pictures of a font of colours as an array, the data of the experiment figure4.

Fonts of this kind, such as Debian's fonts-noto-color-emoji, have bitmaps of one size. Each code
point of the font, and each flag, is drawn on white and scaled down; pictures that are equal are
kept once. Variants of another skin colour are left out: nearly equal pictures would be both in the
part that is trained on and in the part that is held out.
"""

import argparse
from itertools import product
from unicodedata import category

import numpy as np

# the size of the bitmaps of Noto Color Emoji, and the pixels around them
FONT_SIZE, CANVAS = 109, 136
FLAG_LETTERS = [chr(0x1F1E6 + i) for i in range(26)]
BLOCKS = ((0x2000, 0x3300), (0x1F000, 0x1FB00))
INVISIBLE = {"Cf", "Mn", "Me", "Zl", "Zp", "Zs"}


def characters():
    """Texts that may be one picture."""
    for first, last in BLOCKS:
        yield from (x for x in map(chr, range(first, last)) if category(x) not in INVISIBLE)
    yield from map("".join, product(FLAG_LETTERS, repeat=2))


def draw(font, text, side):
    """A picture (side, side, 3), or None if the font has not one for a text."""
    from PIL import Image, ImageDraw

    left, top, right, bottom = font.getbbox(text)
    if not 0 < right - left <= CANVAS or not bottom > top:
        return None
    canvas = Image.new("RGB", (CANVAS, CANVAS), "white")
    place = ((CANVAS - right - left) / 2, (CANVAS - bottom - top) / 2)
    ImageDraw.Draw(canvas).text(place, text, font=font, embedded_color=True)
    picture = np.asarray(canvas.resize((side, side), Image.Resampling.BOX))
    # letters are black, and missing characters an empty frame
    return None if np.ptp(picture.astype(int), axis=2).max() < 32 else picture


def draw_all(file, side):
    """The different pictures of a font (n, side, side, 3)."""
    from PIL import ImageFont

    font = ImageFont.truetype(file, FONT_SIZE)
    drawn = (draw(font, text, side) for text in characters())
    found = {picture.tobytes(): picture for picture in drawn if picture is not None}
    return np.stack([*found.values()])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m experiments.pictures", description=__doc__)
    parser.add_argument("font", metavar="FONT", help="such as NotoColorEmoji.ttf")
    parser.add_argument("output", metavar="OUTPUT.npy", help="uint8 (n, side, side, 3)")
    parser.add_argument("--side", type=int, default=32, metavar="N", help="pixels, 32 by default")
    options = parser.parse_args()
    pictures = draw_all(options.font, options.side)
    np.save(options.output, pictures)
    print(f"saved: {options.output}: {len(pictures):,} pictures")
