"""Evaluation of a model: likelihoods of data with their errors, classes, and tests of differences."""
