"""``indm inpaint``."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional, arg

from indm.checks import counted, reason
from indm.workbench.cli.common import DONE, ShowsProgress
from indm.workbench.recipes.options import InpaintingOptions, default

if TYPE_CHECKING:
    from torch import Tensor

    from indm.model import INDM


@dataclass
class Inpaint(ShowsProgress):
    """Draw the missing pixels of an image given the others, by a run.

    "indm inpaint RUN image.png --mask mask.png --out filled" draws the pixels that are white in mask.png. Without a
    mask, the missing pixels are the transparent ones of image.png. Both files have one size. If it is not that of the
    model's images, both are cut and resized as the model's data were, and the draws have the size of the model's
    images. The model's flow must be elementwise, the default for images, or the identity.

    Writes 1.png, 2.png, … with the other pixels as they were, in the model's grey levels; sheet.png with the image, its
    missing pixels grey, before the draws; and inpainting.json, which says how they were drawn.
    """

    run_folder: Annotated[Positional[Path], arg(metavar="RUN")]
    """The run folder, or a model of the hub by its name there, user/name."""
    image: Annotated[Positional[Path], arg(metavar="IMAGE")]
    """The image, of which some pixels are missing."""
    out: Annotated[Path, arg(metavar="FOLDER")]
    """Where to write; a folder that is not empty is an error without --overwrite."""
    mask: Annotated[Path | None, arg(metavar="IMAGE"), default("what is transparent")] = None
    """An image that is white where pixels are missing, and black elsewhere."""
    options: Annotated[InpaintingOptions, arg(name="")] = field(default_factory=InpaintingOptions)
    overwrite: bool = False
    """Write into a folder that is not empty."""

    def run(self) -> int:
        import torch

        from indm.files import atomic
        from indm.inpainting import inpaint
        from indm.workbench.figures import sheets
        from indm.workbench.runs.folder import check_absent, check_empty, open_run, run_folder
        from indm.workbench.runs.provenance import provenance, weights_hash
        from indm.workbench.runs.samples import conditions
        from indm.workbench.translation.pictures import picture

        if not self.overwrite:
            check_empty(self.out, "name another --out, or add --overwrite")
        check_absent(self.out, (), self.overwrite)
        run, options = run_folder(self.run_folder), self.options
        model, recipe = open_run(run)
        levels = model.scaling.levels
        if len(model.shape) != 3 or model.shape[0] not in (1, 3) or levels is None:
            raise ValueError(f"{run} must be a run of grey or RGB images, got one of events of shape {model.shape}")
        raw, missing = self.read(model, recipe["data"])
        if options.condition is None and options.guidance != 1:
            raise ValueError(f"--guidance {options.guidance:g} needs --condition, as in --guidance 2 --condition 3")
        c = None if options.condition is None else conditions(run, model, options)
        self.out.mkdir(parents=True, exist_ok=True)
        generator = torch.Generator(model.scaling.scale.device).manual_seed(options.seed)
        draws = inpaint(
            model,
            raw,
            missing,
            options.n if c is None else len(c),
            c=c,
            guidance=options.guidance,
            steps=options.steps,
            batch_size=options.batch_size,
            generator=generator,
            progress=self.progress,
        ).cpu()
        pictures = (partial(picture(pixels, levels).save, format="PNG") for pixels in draws)
        atomic.together({self.out / f"{number}.png": save for number, save in enumerate(pictures, start=1)})
        seen = raw.masked_fill(missing, levels // 2)
        sheets.save_grid(torch.cat([seen[None], draws]), levels, self.out / "sheet.png")
        sources = {"image": str(self.image), "mask": None if self.mask is None else str(self.mask)}
        made_by = provenance(options.seed, {str(run): weights_hash(run)})
        atomic.json_object(self.out / "inpainting.json", sources | {"options": asdict(options), "provenance": made_by})
        pixels = f"{int(missing[0].sum())} of {missing[0].numel()} pixels"
        print(f"{self.out / 'sheet.png'}: {pixels}, {counted(len(draws), 'draw')}")
        return DONE

    def read(self, model: "INDM", data: dict[str, Any]) -> "tuple[Tensor, Tensor]":
        """The image in grey levels and its missing pixels, of the model's shape; cut and resized as ``data`` says.

        A pixel of a resized image is missing if a missing one has any weight in it.

        Raises:
            ValueError: no mask, one of another size than the image, or one in which no pixel or every pixel is missing.
        """
        from PIL import Image, ImageChops

        from indm.workbench.data.images import pixels_of, read_alpha, read_image, read_size, shown_part
        from indm.workbench.translation.routes import image_reader

        with naming(self.image):
            (height, width), opaque = read_size(self.image), read_alpha(self.image)
            pixels = image_reader(self.image, model, data)().pixels.long()
        if self.mask is not None:
            with naming(self.mask):
                mask = read_image(self.mask).convert("L")
        elif opaque is not None:
            mask = ImageChops.invert(opaque)
        else:
            raise ValueError(f"--mask must be given for {self.image}, which has no transparent pixels")
        if mask.size != (width, height):
            raise ValueError(
                f"{self.mask} must have {width}×{height} pixels, as {self.image}, got {mask.width}×{mask.height}"
            )
        sides = model.shape[1], model.shape[2]
        holes = shown_part(mask.point(lambda level: 255 * (level >= 128)), sides, data.get("crop", True))
        missing = pixels_of(holes.resize(sides[::-1], Image.Resampling.BILINEAR)) > 0
        if missing.all() or not missing.any():
            raise ValueError(f"{self.mask or self.image} must say which pixels are missing, some and not all of them")
        return pixels, missing.expand(model.shape)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Every failure to read an image inside is a ValueError that names ``path``."""
    try:
        yield
    except (ValueError, OSError) as error:
        raise ValueError(f"{path} cannot be read as an image: {reason(error)}") from error
