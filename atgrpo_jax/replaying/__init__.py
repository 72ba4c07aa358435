"""Does again what a run did: draws, plays on, learns. From what the run folder keeps, to the byte."""
