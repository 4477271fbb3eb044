"""Not named as a paper is: a shared part."""
