"""In which order tests run so that their endpoints run for the fewest minutes. Knows no pytest."""
