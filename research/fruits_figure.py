"""The fruits of the README: every fifth class of the shipped model's samples, with its name.

python -m research.fruits_figure
"""

from pathlib import Path

from PIL import Image

ROOT = Path(__file__).parents[1]
SAMPLES = ROOT / "indm" / "pretrained" / "fruits-pretrained" / "samples.png"
FIGURE = ROOT / "docs" / "figures" / "fruits.png"
TOP, ROW, FRAME, CLASSES = 12, 70, 6, 20  # pixels of the picture of all classes; its rows


def chosen() -> Image.Image:
    """Two classes a row, white behind them as in the picture that they come from."""
    whole = Image.open(SAMPLES).convert("RGB")
    height = ROW + FRAME
    picture = Image.new("RGB", (2 * whole.width, 2 * height), "white")
    for place, row in enumerate(range(0, CLASSES, CLASSES // 4)):
        top = TOP + ROW * row
        part = whole.crop((0, top, whole.width, top + height))
        across, down = place % 2, place // 2
        picture.paste(part, (across * whole.width, down * height))
    return picture


if __name__ == "__main__":
    chosen().quantize(256).save(FIGURE, optimize=True)
