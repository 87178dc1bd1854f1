"""Bad files for every reader of kdray: it must answer, or refuse with a message that names the file."""
