"""Selection rules, one file each: from the statistics of an atlas to the neurons of a language."""
