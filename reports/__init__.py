"""Results out: scoring, statistics, charts, the page. Opens no steered model. Imports data."""
