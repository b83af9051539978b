"""The sampling error of runs by parts: ``python -m research.sampling_error RUN RUN``."""
