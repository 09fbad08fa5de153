"""Translation: pieces of words, the search for good translations, and how good they are."""
