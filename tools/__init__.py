"""The command line over the library and the reports."""
