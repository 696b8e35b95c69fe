"""Who is at risk: single records and groups of them, with numbers that hold for lists and for many looks."""
