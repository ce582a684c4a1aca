"""Other ways for a picture to cross the cut, in the same harness as ours: each with a real encoder."""
