"""The recipe that makes the small reference checkpoint."""
