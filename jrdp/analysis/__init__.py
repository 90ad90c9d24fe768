"""`jrdp analyze`: result files of any system, matched, classified, drawn and reported."""
