"""Defaults of likelihoods, without PyTorch, which takes seconds to import."""

NLL_ERROR = 1e-3  # bits/dim, of the solver
TIMES, PROBES = 4, 1  # score evaluations of a NELBO; Hutchinson probes of a divergence
IW_EXAMPLES, REPEATS, BATCH_SIZE = 100, 2, 256
