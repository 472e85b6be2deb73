"""``make gate-proof``: false alarms, power and naming of the regression gate, on real and on simulated runs."""
