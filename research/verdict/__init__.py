"""Whether a flow of whole images pays: the study that decides."""
