"""Room of machines: finding them, and in time renting, watching and giving them back."""
