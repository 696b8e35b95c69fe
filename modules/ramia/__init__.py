"""RaMIA: does a range of records hold a training point? (Tao & Shokri 2025, https://arxiv.org/abs/2408.05131)."""
