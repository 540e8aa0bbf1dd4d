"""The nouns people choose, and the few nouns that training passes around; standard library only."""
