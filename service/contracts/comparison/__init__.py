"""What a comparison of reports says, and how it follows from the reports: plain Python on stored figures."""
