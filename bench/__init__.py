"""Benchmarks of complete quantized training: integer engine, hypernetworks, measurements, records."""
