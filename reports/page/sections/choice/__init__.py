"""What was chosen and by what: the sweep, methods and gates compared, and how well gates tell. Imports as its parent does."""
