"""Files: read without trust if their maker is unknown, written whole or not at all."""
