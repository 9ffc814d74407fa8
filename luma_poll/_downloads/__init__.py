"""Downloads of outputs: into files, into memory, or as a stream."""
