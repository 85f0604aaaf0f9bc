"""What sits in a client library, whichever it is."""
