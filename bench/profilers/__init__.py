"""Observers of a training step: time by phase, memory peaks, power and clocks; they observe and never steer."""
