"""Other systems to compare with, one file each."""
