"""``metagrad-bench gate --against REV``: another revision, measured in turn with the working tree."""
