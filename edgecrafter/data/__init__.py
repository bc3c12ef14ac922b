"""Data sets: reading them (``formats``), checking them (``check``), decoding pictures (``images``) and feeding them."""
