"""What a run leaves on disk: quantities, the writer, the only reader."""
