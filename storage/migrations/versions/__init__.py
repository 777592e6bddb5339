"""One file a revision, with its statements beside it; a released file never changes."""
