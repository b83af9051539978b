"""An SDE of one's own with a learned rate for each entry of the latent: VP, with β scaled by it."""

import torch
from torch import nn

from indm.sde import VPSDE, LinearSDE
from indm.tensors import double


class EachEntry(LinearSDE):
    """Entry i is the VP diffusion with rᵢ β in place of β; ``log_snr`` and ``time``, the common clock, are VP's."""

    def __init__(self, shape: tuple[int, ...], eps: float = 1e-5):
        super().__init__(eps)
        self.shape, self.base = tuple(shape), VPSDE(eps=eps)
        self.log_rate = nn.Parameter(torch.zeros(self.shape))

    def _of_rate(self, value):
        return double(value).reshape(*value.shape, *(1 for _ in self.shape)) * double(self.log_rate).exp()

    def log_alpha(self, t):
        return (-0.5 * self._of_rate(self.base.integrated_beta(double(t)))).to(t)

    def sigma(self, t):
        return (-torch.expm1(-self._of_rate(self.base.integrated_beta(double(t))))).sqrt().to(t)

    def drift(self, t):
        return (-0.5 * self._of_rate(self.base.beta(double(t)))).to(t)

    def diffusion(self, t):
        return self._of_rate(self.base.beta(double(t))).sqrt().to(t)

    def log_snr(self, t):
        return self.base.log_snr(t)

    def time(self, log_snr):
        return self.base.time(log_snr)

    def clock_rate(self, t):
        speed = (self.base.diffusion(double(t)) / self.base.sigma(double(t))) ** 2
        own = (self.diffusion(double(t)) / self.sigma(double(t))) ** 2
        return (own / speed.reshape(*t.shape, *(1 for _ in self.shape))).to(t)

    def sample_time(self, n, *, importance, eps=None, generator=None, device=None):
        eps = self.truncation(eps)
        return self.base.sample_time(n, importance=importance, eps=eps, generator=generator, device=device)
