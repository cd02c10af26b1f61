"""What `verify` holds a run directory against: each file a step that is done again from what it was made of. Imports what commands do."""
