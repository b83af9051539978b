"""What a trained model achieves: likelihoods, classes, distances of samples, comparisons of runs."""
