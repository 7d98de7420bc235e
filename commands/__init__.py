"""The command line's commands, one file each: `add` describes its options, `run` does the work."""
