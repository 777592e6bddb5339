"""Pictures' features or per-picture losses in, estimates out. Knows no trainer, no study and no store."""
