"""What a board is shown as: Markdown, HTML, figures, CSV, JSON. Each is of the board alone."""
