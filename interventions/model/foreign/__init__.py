"""What comes out of somebody else's model folder, held against what it says it is. Imports data alone."""
