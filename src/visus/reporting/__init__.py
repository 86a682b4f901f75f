"""From run folders to pages that people read: the report, and the model card."""
