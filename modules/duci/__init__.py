"""DUCI: which share of a dataset did a model train on? (Tong, Ye, Zarifzadeh, Shokri, ICLR 2025).

    rehearse      attack references whose membership is known, each exactly as the target is attacked
    thresholds    from scores to guesses, chosen on rehearsals
    groups        parts of the dataset that leak alike, for samples that are not drawn at random
    usage         the debiased share, and its interval
    baselines     what is compared with it
    sampling      which part of the dataset a synthetic target trains on
    transport     do rates learnt at one half hold at other shares?

**M** here counts rehearsals: models of known membership that were attacked; **N** the records of the dataset.
"""
