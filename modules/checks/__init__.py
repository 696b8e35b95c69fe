"""Is the audit itself to be trusted? Pure checks of scores, memberships and models.

null        the same scores with memberships drawn by lot: every attack must find nothing
fidelity    is the target a model like its references, and did it fit its members?
resolution  how many non-members would an FPR need?
dp          is what was recognised within what the stated differential privacy allows?
"""
