"""A campaign of faults against running suites: kills, full disks, damaged files, cells that end badly."""
