"""Training: assembling a cell's parts, one step, the loop over epochs."""
