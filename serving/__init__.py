"""A run's arms as an OpenAI-compatible endpoint, and the page to try them. Imports interventions, reports and data."""
