"""Being here puts tests/ on the import path, so that every test can `from checkpoints import ...`."""
