"""TextCraftor: tune what reads the prompt of a text-to-image model by reward."""
