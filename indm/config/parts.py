"""Which kinds of parts a model is made of."""

KINDS = ("flow", "sde", "net")
