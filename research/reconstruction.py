"""The reconstruction term with one z_ε in both of its parts, and with two independent ones as in the authors' code.

The term is E[log q(z_ε|z_0) − log p(z_0|z_ε)], whose mean of z_0 takes the score at the same z_ε. The authors take the
score at another, independent z_ε (``get_likelihood_residual_fn`` in ``likelihood.py`` of github.com/byeonghu-na/INDM).

    python -m research.reconstruction RUN [RUN …]
"""

import math
import sys
from pathlib import Path

import torch

from indm.evaluation.statistics import mean_and_error
from indm.objective import reconstruction_term
from indm.tensors import evaluation_mode, event_size, event_sum, expand_like, randn_like, squared_norm
from indm.workbench.data.base import load_data, stack
from indm.workbench.runs.folder import open_run


def independent(score, z, first, second):
    """The term with the score at α z + σ ``first`` and z_ε = α z + σ ``second``, (B,)."""
    eps, _ = score.sde.endpoints(z)
    error = second + expand_like(score.sde.sigma(eps), z) * score(score.sde.perturb(z, eps, first), eps)
    return 0.5 * (squared_norm(error) - squared_norm(second)) - event_sum(score.sde.log_alpha(eps), z)


def main(folders: list[str]) -> None:
    for folder in map(Path, folders):
        model, recipe = open_run(folder)
        generator = torch.Generator(model.scaling.scale.device).manual_seed(0)
        with evaluation_mode(model):
            x = model.scaling.to_model(stack(load_data(**recipe["data"]).test, 256), generator=generator)
            z, _ = model.encode(x, generator=generator)
            first, second = randn_like(z, generator), randn_like(z, generator)
            terms = {
                "one z_ε": reconstruction_term(model.score, z, first),
                "two": independent(model.score, z, first, second),
            }
        for name, term in terms.items():
            mean, error = mean_and_error(term / (event_size(z) * math.log(2)))
            print(f"{folder}: {name}: {mean:+.4f} ± {error:.4f} bits/dim")


if __name__ == "__main__":
    main(sys.argv[1:])
