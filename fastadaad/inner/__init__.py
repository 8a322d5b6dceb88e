"""The inner maximisation, x_natural -> x_adv, and everything that makes it fast."""
