"""What the machine is: capabilities as values, the probe that reads them, peaks, NVML, the environment block."""
