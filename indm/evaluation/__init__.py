"""What a trained model is worth: likelihoods, distances, translations."""
