"""Synthetic anomalies, made by the pipeline: patches of one normal image blended into another (NSA).

NSA: Schlueter, Tan, Hou, Kainz, Natural Synthetic Anomalies for Self-Supervised Anomaly Detection and Localization,
ECCV 2022; its public code is what "NSA" means where a comment cites behaviour. The view ops are `nsa.nsa` and
`real.real_anomaly`, known to a feed as 'nsa' and 'real_anomaly'.
"""
