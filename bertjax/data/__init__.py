"""From raw text to training examples: reading, vocabularies, the dataset on disk, the examples."""
