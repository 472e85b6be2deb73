"""What this machine can do, and what on it would spoil a measurement."""
