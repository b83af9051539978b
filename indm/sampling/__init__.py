"""Samplers on the latent: from the prior at T to ε, each a class whose step reads like its
equation.

A new one-step sampler is a subclass of :class:`Sampler` with its ``step``. Samples are decoded
once, at the end.
"""

from indm.sampling.base import SAMPLERS as SAMPLERS
from indm.sampling.base import Sampler as Sampler
from indm.sampling.base import default_steps as default_steps
from indm.sampling.base import intervals as intervals
from indm.sampling.base import log_snr_grid as log_snr_grid
from indm.sampling.base import make_sampler as make_sampler
from indm.sampling.base import uniform_grid as uniform_grid
from indm.sampling.deterministic import FLOW_TOLERANCE as FLOW_TOLERANCE
from indm.sampling.deterministic import AdaptiveODE as AdaptiveODE
from indm.sampling.deterministic import DPMSolver2M as DPMSolver2M
from indm.sampling.deterministic import Heun as Heun
from indm.sampling.deterministic import UniPC as UniPC
from indm.sampling.deterministic import follow_flow as follow_flow
from indm.sampling.drawing import centre_prior as centre_prior
from indm.sampling.drawing import prior_batches as prior_batches
from indm.sampling.drawing import sample as sample
from indm.sampling.drawing import sample_with_log_prob as sample_with_log_prob
from indm.sampling.drawing import solve_latent as solve_latent
from indm.sampling.stochastic import Ancestral as Ancestral
from indm.sampling.stochastic import EulerMaruyama as EulerMaruyama
from indm.sampling.stochastic import PredictorCorrector as PredictorCorrector
from indm.sampling.stochastic import SDEDPMSolver2M as SDEDPMSolver2M
from indm.sampling.stochastic import reverse_diffusion_step as reverse_diffusion_step
