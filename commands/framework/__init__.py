"""What every command shares: options and which value counts, artefacts and how they are made, output. Imports interventions, reports and data."""
