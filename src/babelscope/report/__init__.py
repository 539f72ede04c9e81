"""From the folder of a study run to one HTML page, figures and tables."""
