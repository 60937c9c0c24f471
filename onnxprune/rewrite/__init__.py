"""DO: plans become a smaller model; the model is proven against its masked twin and put in place whole or not at all."""
