"""Does a flow pay at a budget that counts? See README.md."""
