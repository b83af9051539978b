"""What a trained model is worth: likelihoods, distances, sampling errors, translations."""
