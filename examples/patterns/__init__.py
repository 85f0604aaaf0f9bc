"""One short program for each pattern and library. Each takes the name of a topic, queue or subject."""
