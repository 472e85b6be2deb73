"""Records of runs: the versioned schema, the store that writes and reads them, one flat row per run."""
