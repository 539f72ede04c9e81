"""The stages of a study, one file each, and the contract that they keep."""
