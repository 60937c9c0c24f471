"""SAY, the measuring half: how far two models differ, how fast each is, and whether the figures pass the user's gates."""
