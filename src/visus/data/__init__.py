"""Sources, splits, augmentation and batches."""
