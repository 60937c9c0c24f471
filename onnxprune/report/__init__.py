"""SAY, the telling half: the report and what was found in a model, as text, JSON and Markdown. One form per file."""
