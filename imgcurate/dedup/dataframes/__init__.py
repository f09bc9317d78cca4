"""What verbs take, what they give, and the ids in it that must not repeat."""
