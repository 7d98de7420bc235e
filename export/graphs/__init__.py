"""The traced graphs, one small module each over the checkpoint's own weight names."""
