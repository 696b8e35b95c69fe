"""Membership-inference attacks, one file each. An import here is what makes an attack's name known in YAML."""

from modules.mia import attack_p, attack_r, base, bavaria, calibration, entropy, lira, loss, rmia

__all__ = ["attack_p", "attack_r", "base", "bavaria", "calibration", "entropy", "lira", "loss", "rmia"]
