"""Evaluation of trained models: likelihoods, classes, distances of samples, comparisons of runs."""
