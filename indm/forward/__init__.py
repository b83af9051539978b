"""Forward processes: the law of the latents z_t given z_0, beside the linear diffusion."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
