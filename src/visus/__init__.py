"""visus: train image classifiers, know how far to trust them, and ship them."""
