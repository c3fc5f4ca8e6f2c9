"""Write the report of a run, or the comparison of several, as one HTML page each."""
