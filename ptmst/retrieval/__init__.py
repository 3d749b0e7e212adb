"""A trained student, kept in a folder, and what it finds among pictures and captions of one's own."""
