"""Senders, listeners, the demo, the figures and the gates: python -m benchmarks --help"""
