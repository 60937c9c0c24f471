"""Sample inputs and what is seen when the model runs on them."""
