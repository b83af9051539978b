"""Files: those of unknown makers are read without trust, ours are written whole or not at all."""
