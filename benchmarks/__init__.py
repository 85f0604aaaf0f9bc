"""What the package adds to each call, beside a hand-written span and the official packages."""
