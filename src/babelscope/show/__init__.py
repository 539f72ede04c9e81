"""Looking at artefacts: `describe` reads any into plain data, `draw` prints that on a terminal."""
