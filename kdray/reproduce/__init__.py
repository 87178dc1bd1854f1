"""Published tables of results, and how they are run again: `kdray reproduce`."""
