"""``qtl-train levels``: how many levels the features' entropy asks for, and what each number costs."""
