"""Records of runs: the versioned schema, and how they are written, read and found."""
