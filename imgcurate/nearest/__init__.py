"""The nearest images of each image, and what is known from them."""
