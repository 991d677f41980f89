"""How much could bits that follow content gain, and how much of it does a network's own choice take?"""
