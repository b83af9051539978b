"""What is compared: the data sets with INDM's budget on each, and the variants of INDM."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from indm.model import build_model, count_parameters
from indm.names import name_of
from indm.workbench.data.registry import load_data
from indm.workbench.recipes import recipe as recipes
from indm.workbench.recipes.recipe import AnyTables
from research.claims.coders import ConvCoder, MLPCoder
from research.claims.vae import elbo, matching_width

PRETRAIN = 0.33
# Of images: a flow of whole images and uniform noise, as in the paper, whatever the recipes have.
AS_PUBLISHED = {
    "flow": "coupling",
    "dequantization": "uniform",
    "train.flow_lr": "1e-3",
    "train.flow_update_every": "3",
}
LINEAR = {"flow": "identity", "train.flow_update_every": "1"}
PLAIN_FLOW = {"net": "zero", "train.objective": "flow", "train.flow_update_every": "1"}


def no_changes(recipe: AnyTables) -> dict[str, str]:
    return {}


def vae_changes(recipe: AnyTables) -> dict[str, str]:
    """A VAE with as many parameters as the recipe's INDM, within a few per cent, at the rate that was best for it."""
    data = load_data(**recipe["data"])
    kind = name_of("net", ConvCoder if len(data.shape) == 3 else MLPCoder)
    parameters = count_parameters(build_model(recipes.model_of(recipe), data.shape, data.scaling))
    return {
        "train.objective": name_of("objective", elbo),
        "train.lr": "1e-3",
        "net": kind,
        "net.width": str(matching_width({"name": kind}, data.shape, parameters)),
    }


@dataclass(frozen=True)
class Variant:
    """How a run differs from the INDM of the recipe.

    Args:
        changes: options of the recipe, as on the command line.
        fit: further changes, which depend on the recipe.
        cost: shares of other variants' step costs that make up its own; empty where the cost is measured.
        shown: measurements that the page shows, though no claim needs them, of the runs of all seeds.
        shown_once: the same, of the run of the first seed alone.
    """

    changes: Mapping[str, str] = field(default_factory=dict)
    fit: Callable[[AnyTables], dict[str, str]] = no_changes
    cost: Mapping[str, float] = field(default_factory=dict)
    shown: tuple[str, ...] = ()
    shown_once: tuple[str, ...] = ()


VARIANTS: dict[str, Variant] = {
    "linear": Variant(LINEAR, shown=("flow",)),
    "indm": Variant(shown=("flow",)),
    "indm-pretrained": Variant({"train.pretrain": str(PRETRAIN)}, cost={"linear": PRETRAIN, "indm": 1 - PRETRAIN}),
    "linear-ve": Variant(LINEAR | {"sde": "ve"}, cost={"linear": 1.0}),
    "indm-ve": Variant({"sde": "ve"}, cost={"indm": 1.0}),
    "flow": Variant(PLAIN_FLOW, shown_once=("quality",)),
    "vae": Variant(fit=vae_changes, shown_once=("quality",)),
}
BASELINES = ("linear", "indm", "flow", "vae")


@dataclass(frozen=True)
class Study:
    """One data set's part.

    Args:
        recipe: name or path of its recipe.
        steps: optimizer steps of INDM; the other variants make as many as take the same time.
        fast_steps: the same for ``--fast``.
        images: samples of each measurement.
        fast_images: the same for ``--fast``.
        seeds: runs of each variant: as many as the test NELBO, the main row, was seen to need.
        evaluate: options of the recipe's ``[evaluate]``, as on the command line.
        variants: which are trained; a claim that needs others is not judged on these data.
        changes: of the recipe, for all variants, as on the command line.
    """

    recipe: str
    steps: int
    fast_steps: int
    images: int
    fast_images: int
    seeds: int
    evaluate: Mapping[str, str]
    variants: tuple[str, ...] = tuple(VARIANTS)
    changes: Mapping[str, str] = field(default_factory=dict)


STUDIES: dict[str, Study] = {
    "eight-gaussians": Study(
        "eight-gaussians", 1200, 150, 1000, 100, 10, {"examples": "10_000", "nll_examples": "2000"}
    ),
    "digits": Study(
        "digits", 500, 40, 256, 40, 5, {"nll_examples": "64", "repeats": "4", "times": "8"}, changes=AS_PUBLISHED
    ),
    "fashion-mnist-16": Study(
        "fashion-mnist-16", 300, 20, 128, 40, 5, {"examples": "2000", "nll_examples": "50"}, BASELINES, AS_PUBLISHED
    ),
    "fashion-mnist": Study(
        "fashion-mnist", 300, 20, 128, 40, 5, {"examples": "1000", "nll_examples": "50"}, BASELINES, AS_PUBLISHED
    ),
}
