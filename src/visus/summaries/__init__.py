"""The parts of `visus.summary`: a model examined with fake tensors, its memory, and the tables made of that."""
