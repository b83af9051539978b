"""Where a flow pays: linear diffusion, a shared spline and a flow of whole images at equal cost."""
