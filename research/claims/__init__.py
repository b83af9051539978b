"""The paper's claims, each tested."""
