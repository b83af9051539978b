"""Diffusion and flow-matching models of other libraries as INDMs with the identity flow."""
