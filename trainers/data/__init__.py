"""Pictures with captions on disk, and which patients are learned from. Knows nothing of models."""
