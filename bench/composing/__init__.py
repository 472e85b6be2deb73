"""From a command line's settings to checked cells: config groups and their files, composing, what is refused."""
