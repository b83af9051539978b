"""What the flow of a run does: ``python -m research.flow_analysis RUN LINEAR_RUN``."""
