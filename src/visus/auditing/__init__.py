"""What is wrong with a data set: found, explained, and listed; nothing is ever deleted."""
