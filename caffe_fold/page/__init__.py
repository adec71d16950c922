"""One self-contained HTML page of a fold: what it shows, and how it is drawn and written."""
